"""Plays an exported reranker on a robot, in real time, and records every episode with its outcome.

    python -m robots.rollout --policy.path=outputs/reranker --episodes=10
    python -m robots.rollout --robot.type=so101_follower --robot.port=/dev/ttyACM0 --robot.id=my_arm \\
        --robot.cameras="{front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}" \\
        --policy.path=outputs/reranker --task="put the cube into the bowl"

The first is a simulated arm (extra `sim`), the second a real one (extra `robots`); any arm of LeRobot's with one
serial servo bus will do, and any other that somebody writes a class for (robots/robot.py). Both need `lerobot`,
`train` and what the policy needs; 1.3 GB. Nothing moves before policy and robot agree on names, units, rate and
cameras. Keys while an episode is played: s success, f failure, r record
it again, q quit. After s, f and r, and after the last episode, the arm goes back to where it began by itself, slowly
(--safety.home_speed); after q it stays where it is. However it ends, the arm stops and its torque goes off
(robots/safety.py, robots/watchdog.py). What was recorded is what recipes/train_critic.py takes as --rollouts.
Interrupted, the same command goes on.
"""

import itertools
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from deas_vla.config import to_json
from deas_vla.data.contract import Contract
from deas_vla.data.episodes import save_block
from deas_vla.data.observation import Observation
from deas_vla.errors import UserError
from deas_vla.export.reranker import Reranker
from deas_vla.export.verify import SUMS, check_sums
from deas_vla.files import read_json, sha256_of, write_json
from deas_vla.improvement.best_of_n import NoiseKey
from deas_vla.launch import run_recipe
from deas_vla.rollouts.collect import DATASET, load_blocks, write_collected
from deas_vla.rollouts.play import Job
from deas_vla.rollouts.scenes import scenes_of
from deas_vla.training.loop import make_accelerator
from deas_vla.training.stages import run_stage
from robots.arm import Arm
from robots.config import RolloutConfig, make_robot, settings_of
from robots.contract import fitting_contract
from robots.outcome import Judge
from robots.play import EpisodeResult, play
from robots.robot import Robot
from robots.safety import Limiter, safely
from robots.timing import summary

DEFAULT_SECONDS = 30.0
PLUGS = ("port", "calibration_dir")


def main(config: RolloutConfig) -> None:
    folder = Path(config.policy.path)
    check_sums(folder)
    accelerator = make_accelerator()
    reranker = Reranker.load(folder, accelerator.device)
    robot = make_robot(config.robot)
    contract = fitting_contract(reranker.contract, robot, config.rate_hz)
    settings = to_json(config) | {"output": None, "policy": sha256_of(folder / SUMS)}
    # Where the arm is plugged in, and where its files lie, is another thing every day.
    settings["robot"] = {key: value for key, value in settings["robot"].items() if key not in PLUGS}
    run_stage(
        accelerator, Path(config.output), settings, {},
        lambda stage: roll_out(config, reranker, robot, contract, stage, settings),
    )  # fmt: skip


def roll_out(
    config: RolloutConfig, reranker: Reranker, robot: Robot, contract: Contract, folder: Path, settings: dict
) -> None:
    """Records the episodes that are not recorded yet, and writes all of them as one data set."""
    if (folder / DATASET).exists():
        return
    with Judge(config.outcome, robot) as judge, safely(robot, config.safety.hold_s) as watchdog:
        limiter = Limiter(contract, config.safety.max_step, config.safety.max_lag)
        arm = Arm(robot, contract, limiter, watchdog, config.safety.home_speed)
        arm.connect()
        instruction = config.task or robot.instruction
        if not instruction:
            raise UserError('say what the robot is to do: --task="..."')
        # The first decision is slow.
        reranker.choose(Observation.stack([arm.frame(instruction)]), [NoiseKey(0, 0, 0, 0)])
        for number, scene in enumerate(scenes_of("rollouts", config.episodes, config.seed)):
            path = folder / "blocks" / f"episode-{number:05d}.safetensors"
            if path.is_file():
                continue
            name = f"episode {number + 1} of {config.episodes}"
            played = record(arm, reranker, judge, config, instruction, scene, name)
            if played is None:
                break
            write_json(path.with_suffix(".json"), played.facts)
            save_block(path, [played.episode])
            print(f"{name}: {played.summary()}", flush=True)
        else:
            arm.begin(scene)  # who quits wants no more movement
    write(folder, reranker.contract, settings)


def record(
    arm: Arm, reranker: Reranker, judge: Judge, config: RolloutConfig, instruction: str, scene: int, name: str
) -> EpisodeResult | None:
    """Plays one episode as often as its recording is asked for again; None: quit."""
    rate = arm.contract.rate_hz
    limit = arm.robot.limit or round(DEFAULT_SECONDS * rate)
    limit = limit if config.seconds is None else max(1, round(config.seconds * rate))
    for sample in itertools.count():
        arm.begin(scene)
        if not judge.ready(name):
            return None
        arm.begin(scene)  # while somebody set the scene, the clock went on and the arm may have been moved
        played = play(
            arm,
            reranker,
            judge,
            Job(scene, sample),
            instruction=instruction,
            limit=limit,
            seed=config.seed,
            frame_every=config.frame_every,
        )
        if played.verdict != "again":
            return None if played.verdict == "quit" else played


def write(folder: Path, contract: Contract, settings: dict) -> None:
    """The recorded episodes as a LeRobot data set, with the account of each."""
    blocks = sorted((folder / "blocks").glob("*.safetensors"))
    if not blocks:
        raise UserError("no episode was recorded")
    facts = [read_json(path.with_suffix(".json")) for path in blocks]
    metadata = {"settings": settings, "played": facts}
    write_collected(folder, load_blocks(blocks), contract, metadata=metadata)
    successes = sum(fact["outcome"] == "success" for fact in facts)
    limited = sum(fact["limited"] for fact in facts)
    print(f"{len(facts)} episodes, {successes} succeeded; {summary(facts)}; {limited} actions limited")
    shutil.rmtree(folder / "blocks")


def start(argv: list[str]) -> NoReturn:
    """Reads the settings of the robot that is named, and plays."""
    try:
        settings = settings_of(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    run_recipe(main, settings, argv)


if __name__ == "__main__":
    start(sys.argv[1:])
