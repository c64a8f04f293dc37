"""deas_vla: make vision-language-action policies better from their own rollouts.

Everything that a user imports is here, `from deas_vla import load_policy, load_scorer, BestOfN`, and comes from its
module when it is asked for: importing this package imports nothing, not even torch. docs/python.md shows the use.
"""

import importlib

__version__ = "0.1.0"

# Module to the names of it that are public. Each has a docstring that states shapes and units.
_PUBLIC = {
    "deas_vla.critic.critic": ("CriticBatch", "CriticConfig", "DeasCritic"),
    "deas_vla.data.contract": ("Camera", "Column", "Contract"),
    "deas_vla.data.episodes": ("Episode",),
    "deas_vla.data.lerobot.reader": ("read_dataset",),
    "deas_vla.data.lerobot.writer": ("write_dataset",),
    "deas_vla.data.observation": ("Context", "Observation"),
    "deas_vla.data.options": ("Options", "RewardSpec", "build_options"),
    "deas_vla.envs.protocol": ("ChunkResult", "EnvSettings", "SteppedEnv"),
    "deas_vla.envs.registry": ("env_config", "make_env", "register_simulator"),
    "deas_vla.errors": ("ContractMismatch", "UserError"),
    "deas_vla.export.reranker": ("Reranker",),
    "deas_vla.improvement.best_of_n": ("BestOfN", "Choice", "NoiseKey"),
    "deas_vla.improvement.selection": ("SelectionConfig",),
    "deas_vla.policies.chunk_policy": ("ChunkPolicy",),
    "deas_vla.policies.registry": ("load_policy", "register_policy"),
    "deas_vla.rollouts.statistics": ("paired_difference", "wilson_interval"),
    "deas_vla.scorers.deas": ("DeasScorer",),
    "deas_vla.scorers.scorer": ("Encoded", "Scorer", "load_scorer", "register_scorer"),
    "deas_vla.training.presets": ("Preset", "preset"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
