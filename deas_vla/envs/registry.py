"""Simulators by name. A new one is one class with `@register_simulator("name")`, in a file or folder anywhere.

docs/simulators.md shows one, played by ``--env=path/to/file.py:name``. One of another package is found by an entry
point of the group ``deas_vla.simulators``.
"""

import pkgutil
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


register_simulator = SIMULATORS.register


@dataclass(frozen=True)
class EnvConfig:
    """One task of one simulator, with settings of the simulator's own class."""

    simulator: str
    task: str
    settings: EnvSettings = field(default_factory=EnvSettings)


def env_config(simulator: str, task: str, **settings) -> EnvConfig:
    """One task of a simulator, with its own defaults for what is not given; an unknown name is a UserError."""
    settings_class = SIMULATORS.get(simulator).settings_class
    try:
        return EnvConfig(simulator, task, settings_class(**settings))
    except TypeError as error:
        raise UserError(f"{simulator}: {error}") from error


def make_env(config: EnvConfig) -> Simulator:
    """Starts a simulator; if it, the task or a camera is unknown, or something is not installed, a UserError."""
    return SIMULATORS.get(config.simulator)(config.settings, config.task)


def contract_of(config: EnvConfig) -> Contract:
    """The contract of an environment, without starting or importing the simulator; an unknown name is a UserError."""
    return SIMULATORS.get(config.simulator).contract_for(config.settings, config.task)
