"""Takes a policy that LeRobot trained into a run, as if recipes/finetune_policy.py had made it.

    python recipes/adopt_policy.py --checkpoint=outputs/train/checkpoints/last/pretrained_model \\
        --dataset=outputs/metaworld/demonstrations/dataset --output=outputs/metaworld/policy

Needs the extra `lerobot`; as much memory as the policy. Then recipes/collect_rollouts.py, train_critic.py, evaluate.py
and `deas-vla export` take it. LeRobot does not store what a policy's columns mean; the data set that it was trained on
says so, or --units does. A policy that was fine-tuned from a base (`lerobot-train --policy.path=BASE --rename_map=…`)
keeps the base's cameras, image sizes and width of the state in its config.json: SmolVLA, π0 and π0.5 resize and pad
inside and are taken all the same; cameras that only the data or only the base have are named. What is written holds all
of the policy and refers to no other folder and to no hub.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from deas_vla.data.contract import Contract, Statistics
from deas_vla.data.episodes import statistics_of
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot import SIDECAR
from deas_vla.data.lerobot.declare import declared_contract, with_facts
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import KEYS, UNKNOWN, Layout, feature_names, named_pairs
from deas_vla.data.lerobot.reader import own_contract, read_dataset
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.files import sha256_of
from deas_vla.launch import run_recipe
from deas_vla.policies.lerobot.modeling import LeRobotPolicy
from deas_vla.training.estimate import require_room_for_weights
from deas_vla.training.loop import make_accelerator
from deas_vla.training.stages import run_stage


@dataclass
class AdoptPolicyConfig:
    """Settings of recipes/adopt_policy.py."""

    checkpoint: str = ""  # Folder that LeRobot wrote: …/pretrained_model.
    dataset: str = ""  # LeRobot data set that it was trained on.
    output: str = "outputs/lerobot/policy"  # Folder of this stage.
    # Where the checkpoint is an adapter of peft: folder of the policy that it adapts, if not the one that it names.
    base: str = ""
    # Units of the columns, if the data set does not say: as in `deas-vla declare --help`. Asked for by robots.
    units: str = ""
    rate: str = ""  # Control steps a second, if the data set does not say, or says a wrong number.
    robot: str = ""  # What moved in it, if the data set does not say: so101_follower, …
    # Which camera of the data set is which of the policy's, if the checkpoint does not say: top=camera1,wrist=camera2.
    cameras: str = ""
    # For a type of policy without an adapter of its own: the module that encodes images, which the critic reads.
    feature: str = ""


def adopt_policy(accelerator: Accelerator, config: AdoptPolicyConfig) -> None:
    checkpoint, given = Path(config.checkpoint), {"units": config.units, "rate": config.rate, "robot": config.robot}
    facts = {name: value for name, value in given.items() if value}
    dataset = with_facts(Path(config.dataset), facts)
    layout = Layout.of(dataset)
    contract = declared_contract(dataset) if facts else own_contract(dataset, layout)[0]
    require_order_of_files(dataset, layout, contract)
    units = {column.unit for column in (*contract.state, *contract.action)}
    for what, flag, unknown in (
        ("the units of its columns", "--units=UNIT", UNKNOWN in units),
        ("what moved", "--robot=NAME", contract.embodiment == UNKNOWN),
    ):
        if unknown:
            print(
                f"{dataset.root} does not say {what}, and a robot refuses a policy without: add {flag}, or for all "
                f"that read the data: deas-vla declare {dataset.root} {flag}"
            )

    def statistics() -> Statistics:
        undeclared = LerobotFolder(dataset.root)
        own = replace(own_contract(undeclared, Layout.of(undeclared))[0], cameras=())
        return statistics_of(read_dataset(dataset.root, own, labels=LabelRules("never", "success"))[0])

    def work(folder: Path) -> None:
        require_room_for_weights("the policy", checkpoint, folder, 1.0)
        policy = LeRobotPolicy.load(
            checkpoint, contract, config.feature or None, config.base or None,
            columns=layout.cameras, cameras=named_pairs(config.cameras), statistics=statistics,
        )  # fmt: skip
        require_same_names(policy, dataset)
        kept = [camera.name for camera in policy.contract.cameras]
        for camera in contract.cameras:
            if camera.name not in kept:
                print(f"the policy does not see the camera {camera.name} of {dataset.root}: it is left out")
        for name in policy.processors.camera_keys.keys() - kept:
            print(f"{dataset.root} has no camera {name} of the policy's base: LeRobot goes without it")
        policy.save(folder / "policy")

    settings = {"checkpoint": sha256_of(checkpoint), "contract": contract.fingerprint, "feature": config.feature}
    if config.cameras:
        settings["cameras"] = config.cameras
    if config.base:
        settings["base"] = sha256_of(Path(config.base))
    run_stage(accelerator, Path(config.output), settings, {}, work)


def require_order_of_files(dataset: LerobotFolder, layout: Layout, contract: Contract) -> None:
    """LeRobot trained on the columns as they lie in the files: a contract with another order would rename them."""
    misfits = layout.column_misfits(dataset, contract)
    if misfits:
        raise ContractMismatch(f"{dataset.root} and its contract do not fit together: {'; '.join(misfits)}")
    picked = layout.with_columns_of(contract)
    for what, key in KEYS.items():
        positions = [(column.key, column.index) for column in getattr(picked, what)]
        if positions != [(key, index) for index in range(len(positions))]:
            problem = f"the contract lists the columns of the {what} in another order than the files"
            order = ", ".join(column.name for column in getattr(layout, what))
            fix = f"LeRobot trained on that of the files ({order}); list them so in {SIDECAR}"
            raise ContractMismatch(f"{dataset.root}: {problem}, and {fix}")


def require_same_names(policy: LeRobotPolicy, dataset: LerobotFolder) -> None:
    """Some types of LeRobot's policies note the names of the action columns that they were trained on."""
    trained = getattr(policy.policy.config, "action_feature_names", None)
    names = feature_names(dataset.features[KEYS["action"]])
    # Of names in a dictionary LeRobot notes the keys.
    stored = dataset.features[KEYS["action"]].get("names")
    if trained and names and list(trained) not in (names, list(stored)):
        theirs = f"the policy was trained on {', '.join(map(str, trained))}; give the data set that it was trained on"
        raise ContractMismatch(f"{dataset.root}: its action columns are {', '.join(names)}, {theirs}")


def main(config: AdoptPolicyConfig) -> None:
    if not Path(config.checkpoint, "config.json").is_file() or not config.checkpoint:
        raise UserError(f"--checkpoint={config.checkpoint} is not a folder that LeRobot wrote (no config.json in it)")
    adopt_policy(make_accelerator(), config)


if __name__ == "__main__":
    run_recipe(main, AdoptPolicyConfig)
