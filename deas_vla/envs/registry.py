"""From a configuration to an environment, or to its contract without starting a simulator."""

from deas_vla.data.contract import Contract
from deas_vla.envs.config import EnvConfig
from deas_vla.envs.protocol import ChunkEnv
from deas_vla.errors import UserError, unknown

SIMULATORS = ("robosuite", "robocasa", "metaworld")


def make_env(config: EnvConfig) -> ChunkEnv:
    """Starts the simulator that a configuration names.

    Raises:
        UserError: if the simulator, the task or a camera is unknown, or something is not installed.
    """
    _check(config)
    if config.name == "robosuite":
        from deas_vla.envs.robosuite.env import RobosuiteEnv

        return RobosuiteEnv(config)
    if config.name == "metaworld":
        from deas_vla.envs.metaworld.env import MetaworldEnv

        return MetaworldEnv(config)
    from deas_vla.envs.robocasa.env import RoboCasaEnv

    return RoboCasaEnv(config)


def contract_of(config: EnvConfig) -> Contract:
    """The contract of an environment; starts and imports no simulator.

    Raises:
        UserError: as `make_env`, as far as it can be told without the simulator.
    """
    _check(config)
    if config.name == "robosuite":
        from deas_vla.envs.robosuite.tasks import robosuite_contract

        return robosuite_contract(config)
    if config.name == "metaworld":
        from deas_vla.envs.metaworld.tasks import metaworld_contract

        return metaworld_contract(config)
    from deas_vla.envs.robocasa.env import robocasa_contract

    return robocasa_contract(config)


def _check(config: EnvConfig) -> None:
    if config.name not in SIMULATORS:
        raise UserError(unknown("simulator", config.name, SIMULATORS))
