"""How much faster a control step is in our compiled loop than in robosuite's own, on one core.

    python benchmarks/robosuite_control.py

Needs the extra `sim`; half a minute. Both play the same random commands in Lift at robosuite's own physics step of
2 ms, without images; ours also at 5 ms, as recipes play.
"""

import argparse
import time

import numpy as np

from deas_vla.envs.registry import env_config, make_env
from deas_vla.envs.robosuite.tasks import RobosuiteSettings, build_simulator

STEPS, REPEATS = 60, 3


def seconds_a_step(step, commands: np.ndarray) -> float:
    """The fastest of a few runs, per control step; the first commands warm caches and compile."""
    for command in commands[:5]:
        step(command)
    runs = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for command in commands:
            step(command)
        runs.append((time.perf_counter() - began) / len(commands))
    return min(runs)


def ours(timestep: float, commands: np.ndarray) -> float:
    env = make_env(env_config("robosuite", "lift", simulation_timestep=timestep))
    env.reset(0)
    seconds = seconds_a_step(env.step, commands)
    env.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    commands = np.random.default_rng(0).uniform(-1, 1, (STEPS, 12)).astype(np.float32)
    stock = build_simulator(RobosuiteSettings(), "lift")
    stock.reset()
    low, high = stock.action_spec
    theirs = seconds_a_step(lambda command: stock.step(np.clip(command[: len(low)], low, high)), commands)
    for timestep in (0.002, 0.005):
        mine = ours(timestep, commands)
        print(
            f"physics step {1000 * timestep:g} ms: ours {1000 * mine:.2f} ms a control step, robosuite's own loop "
            f"(2 ms) {1000 * theirs:.2f} ms: {theirs / mine:.1f} times"
        )


if __name__ == "__main__":
    main()
