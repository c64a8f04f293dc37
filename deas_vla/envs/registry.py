"""Simulators by name. A new one is one class with `@register_simulator("name")`, in a file or folder anywhere:

    @dataclass
    class PointMassSettings(EnvSettings):
        cameras: list[str] = field(default_factory=lambda: ["top"])

    @register_simulator("point_mass")
    class PointMass(SteppedEnv):
        settings_class = PointMassSettings

        @classmethod
        def contract_for(cls, settings, task): ...
        def __init__(self, settings, task): ...

and then ``--env=path/to/point_mass.py:point_mass --tasks=reach --simulator.camera_size=32``. A simulator of another
package is found by an entry point of the group ``deas_vla.simulators``.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from deas_vla.data.contract import Contract
from deas_vla.envs.protocol import EnvSettings, Simulator
from deas_vla.errors import UserError
from deas_vla.registry import Registry

# Every folder beside this file is a simulator, which its env.py registers.
SIMULATORS: Registry[type[Simulator]] = Registry(
    "simulator",
    "deas_vla.simulators",
    {
        module.name: f"{__package__}.{module.name}.env"
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
        if module.ispkg
    },
)


def register_simulator[S: type](name: str) -> Callable[[S], S]:
    """Decorator: registers a `Simulator` under a name."""
    return SIMULATORS.register(name)


@dataclass(frozen=True)
class EnvConfig:
    """One task of one simulator, with settings of the simulator's own class."""

    simulator: str
    task: str
    settings: EnvSettings = field(default_factory=EnvSettings)


def env_config(simulator: str, task: str, **settings) -> EnvConfig:
    """One task of a simulator, with its own defaults for what is not given.

    Raises:
        UserError: if there is no such simulator, or it has no such setting.
    """
    settings_class = SIMULATORS.get(simulator).settings_class
    try:
        return EnvConfig(simulator, task, settings_class(**settings))
    except TypeError as error:
        raise UserError(f"{simulator}: {error}") from error


def make_env(config: EnvConfig) -> Simulator:
    """Starts the simulator that a configuration names.

    Raises:
        UserError: if the simulator, the task or a camera is unknown, or something is not installed.
    """
    return SIMULATORS.get(config.simulator)(config.settings, config.task)


def contract_of(config: EnvConfig) -> Contract:
    """The contract of an environment; starts and imports no simulator.

    Raises:
        UserError: as `make_env`, as far as it can be told without the simulator.
    """
    return SIMULATORS.get(config.simulator).contract_for(config.settings, config.task)
