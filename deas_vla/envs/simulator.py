"""What every recipe that plays episodes asks: which simulator, which tasks, how many at once."""

from dataclasses import asdict, dataclass, field

from deas_vla.envs.config import EnvConfig, EnvSettings
from deas_vla.envs.vector import EnvWorkers


def noisy_expert() -> EnvSettings:
    """Demonstrations like a person's: the noise leaves states to recover from, the bias makes one try in five fail."""
    return EnvSettings(expert_noise=0.2, expert_grasp_bias=0.012)


@dataclass
class SimulatorConfig:
    """Where episodes are played."""

    # The simulator: robosuite, metaworld (from their wheels) or robocasa (needs its own installation and assets).
    env: str = "robosuite"
    # Tasks, separated by commas: lift, stack, pick_place_can, door; for the others the names of their environments.
    tasks: list[str] = field(default_factory=lambda: ["lift"])
    # How tasks are seen and played.
    simulator: EnvSettings = field(default_factory=noisy_expert)
    # Simulator processes of the whole run; 0 plays in the recipe's own.
    workers: int = 2
    # Episodes under way at once; the policy decides for all of them in one batch.
    parallel_episodes: int = 16

    def env_config(self, task: str) -> EnvConfig:
        """One task's environment."""
        return EnvConfig(**asdict(self.simulator), name=self.env, task=task)

    def open_workers(self, task: str, processes: int = 1) -> EnvWorkers:
        """Starts the simulators of one task; use as a context manager.

        Args:
            task: its name.
            processes: processes of the recipe that each start their share of them.
        """
        return EnvWorkers(self.env_config(task), -(-self.workers // processes))
