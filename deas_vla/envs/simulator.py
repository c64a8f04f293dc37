"""What every recipe that plays episodes asks: which simulator, which tasks, how many at once."""

from dataclasses import dataclass, field, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

from deas_vla.config import incidental, read_file
from deas_vla.envs.protocol import EnvSettings
from deas_vla.envs.registry import SIMULATORS, EnvConfig
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import require_ranges


@dataclass
class SimulatorConfig:
    """Where episodes are played."""

    # The simulator: robosuite, metaworld, robocasa, FILE.py:NAME, MODULE:NAME, or of an installed package.
    env: str = "robosuite"
    tasks: list[str] = field(default_factory=lambda: ["lift"])  # Tasks of the simulator, separated by commas.
    simulator: EnvSettings | None = None  # How tasks are seen and played: settings of the simulator that --env names.
    workers: int = incidental(2)  # Simulator processes of the whole run; 0 plays in the recipe's own.
    parallel_episodes: int = incidental(16)  # Episodes under way at once; the policy decides for all in one batch.

    def __post_init__(self):
        require_ranges(self, "", {"at least 0": "workers", "at least 1": "parallel_episodes"})
        if self.simulator is None:
            self.simulator = SIMULATORS.get(self.env).settings_class()

    @classmethod
    def for_arguments(cls, argv: list[str]) -> type[Self]:
        """See `with_simulator`."""
        return with_simulator(cls, argv)

    def env_config(self, task: str) -> EnvConfig:
        return EnvConfig(self.env, task, self.simulator)

    def open_workers(self, task: str, processes: int = 1) -> EnvWorkers:
        """Starts the simulators of one task, a context manager; `processes` of the recipe each start their share."""
        return EnvWorkers(self.env_config(task), -(-self.workers // processes))


def with_simulator[T](config_class: type[T], argv: list[str], prefix: str = "") -> type[T]:
    """A class of settings with those of the simulator that a command line, or its ``--config`` file, names.

    The class has ``env``, a name with a default, and ``simulator``, the settings; `prefix` is that of its flags in
    `argv`: ``robot.``. An unknown simulator is a UserError.
    """
    given = dict(token.split("=", 1) for token in argv if "=" in token) | dict(pairwise(argv))
    from_file = read_file(Path(given["--config"])).get("env") if "--config" in given else None
    name = given.get(f"--{prefix}env") or from_file or config_class.env
    settings = SIMULATORS.get(name).settings_class
    fields = [("simulator", settings, field(default_factory=settings))]
    return make_dataclass(
        config_class.__name__,
        fields,
        bases=(config_class,),
        kw_only=True,
        module=config_class.__module__,
        namespace={"__doc__": config_class.__doc__},
    )
