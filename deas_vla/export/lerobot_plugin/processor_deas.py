"""What LeRobot does to observations and actions around the policy: nothing but names, batches and devices.

Normalisation, tokens and padding are the policy's own, inside it, so that no statistics of another data set can take
the place of those that it was trained with.
"""

from typing import Any

from lerobot.processor import PolicyProcessorPipeline, ProcessorStepRegistry
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from deas_vla.export.lerobot_files import POSTPROCESSOR, PREPROCESSOR, processors
from deas_vla.export.lerobot_plugin.configuration_deas import DeasConfig


def make_deas_pre_post_processors(
    config: DeasConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """What goes before a reranker and what after it, as an export holds them too; `dataset_stats` are not read."""
    files = processors(config.device or "cpu")
    action = {"to_transition": policy_action_to_transition, "to_output": transition_to_policy_action}
    return _pipeline(files[PREPROCESSOR]), _pipeline(files[POSTPROCESSOR], **action)


def _pipeline(file: dict, **converters) -> PolicyProcessorPipeline:
    steps = [ProcessorStepRegistry.get(step["registry_name"])(**step["config"]) for step in file["steps"]]
    return PolicyProcessorPipeline(steps=steps, name=file["name"], **converters)
