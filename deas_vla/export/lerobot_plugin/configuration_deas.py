"""DeasConfig: the settings of an exported reranker inside LeRobot."""

from dataclasses import dataclass, field
from typing import NoReturn

from lerobot.configs import PreTrainedConfig

from deas_vla.errors import UserError, require_ranges
from deas_vla.improvement.selection import SelectionConfig

NO_TRAINING = (
    "a deas policy is not trained by LeRobot: train its parts with recipes/finetune_policy.py and "
    "recipes/train_critic.py, and export them again"
)


@PreTrainedConfig.register_subclass("deas")
@dataclass
class DeasConfig(PreTrainedConfig):
    """What config.json of an export says, and LeRobot's command line may change: ``--policy.num_candidates=16``.

    The inputs, the outputs, `chunk_size` and `rate_hz` are facts about the policy: a value that is not the policy's
    is refused. The rest are choices, among them the rule that picks a candidate: ``--policy.selection.rule=consensus``.
    """

    chunk_size: int = 1  # Actions in a chunk.
    n_action_steps: int = 1  # The first so many of a chunk are played before the policy decides again.
    # Steps of control a second. LeRobot does not give a policy its rate: say what the environment's or the robot's
    # is, --policy.rate_hz=…, and a policy of another rate is refused.
    rate_hz: float = 0.0
    num_candidates: int = 8  # Chunks that the policy proposes at a decision.
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(rule="best"))  # Which of them is played.
    seed: int = 0  # Chooses the policy's noise, together with the episode's first observation.

    def __post_init__(self) -> None:
        super().__post_init__()
        require_ranges(self, "--policy.", {"at least 1": "num_candidates"})
        if not 1 <= self.n_action_steps <= self.chunk_size:
            given, most = self.n_action_steps, self.chunk_size
            raise UserError(f"--policy.n_action_steps={given} must be 1 to {most}, the steps of a chunk")

    # What LeRobot's classes must have: nothing but the current observation is read.
    observation_delta_indices = None
    reward_delta_indices = None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    def get_optimizer_preset(self) -> NoReturn:
        """What lerobot-train asks for before anything else: refused, with a UserError."""
        raise UserError(NO_TRAINING)

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        """Nothing: they are compared with the policy's own where it is read."""
