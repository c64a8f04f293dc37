"""The kinds of policies that a reranker can hold, and how each is written and read."""

import copy
from abc import ABC, abstractmethod
from pathlib import Path

from deas_vla.data.contract import Contract
from deas_vla.data.lerobot import IMAGES
from deas_vla.errors import UserError
from deas_vla.policies.adapters import Merged, merge_adapters
from deas_vla.policies.chunk_policy import ChunkPolicy


class PolicyKind(ABC):
    """One class of policies. A further class is one more entry in `KINDS`.

    Attributes:
        policy_class: dotted name of the class; it is imported where it is used.
        feature_source: which of the policy's tensors the critic's features are pooled from, in words.
    """

    policy_class: str
    feature_source: str

    @abstractmethod
    def standalone(self, policy: ChunkPolicy) -> tuple[ChunkPolicy, Merged]:
        """A copy with its adapters merged."""

    @abstractmethod
    def save(self, policy: ChunkPolicy, folder: Path) -> None:
        """Writes all that a policy needs, with no reference to another folder of the run that made it."""

    @abstractmethod
    def load(self, folder: Path, contract: Contract | None = None) -> ChunkPolicy:
        """Reads in evaluation mode what `save` (then on the CPU) or the policy's own `save` wrote.

        Raises:
            UserError: naming the file that is missing, cut off or does not fit.
            ContractMismatch: if a contract is given and the policy has another one.
        """

    @abstractmethod
    def wrote(self, folder: Path) -> bool:
        """Whether a folder looks like a saved policy of this kind."""

    @abstractmethod
    def origin(self, policy: ChunkPolicy) -> dict[str, str | int | None]:
        """What a reader of the manifest should know of the base model: its name, revision and tuning."""

    def image_keys(self, policy: ChunkPolicy) -> dict[str, str]:
        """Camera of the contract to its key in LeRobot's observations."""
        return {camera.name: IMAGES + camera.name for camera in policy.contract.cameras}


class SmallVLAKind(PolicyKind):
    """The GR00T-style policy of this project."""

    policy_class = "deas_vla.policies.small_vla.modeling.SmallVLAPolicy"
    feature_source = (
        "the tokens that the action head attends to, after the backbone's last layer that is kept"
    )

    def standalone(self, policy):
        from deas_vla.policies.small_vla.standalone import standalone

        return standalone(policy)

    def save(self, policy, folder):
        policy.save(folder)

    def load(self, folder, contract=None):
        from deas_vla.policies.small_vla.modeling import SmallVLAPolicy

        return SmallVLAPolicy.load(folder, contract)

    def wrote(self, folder):
        from deas_vla.policies.small_vla.checkpoint import BACKBONE

        return (folder / BACKBONE).is_dir()

    def origin(self, policy):
        return {
            "backbone": policy.config.backbone or "embedded",
            "backbone_weights": policy.backbone.base_hash,
            "tune": policy.config.tune,
        }


class LeRobotKind(PolicyKind):
    """A policy of LeRobot's, of any kind that candidates can be drawn from."""

    policy_class = "deas_vla.policies.lerobot.modeling.LeRobotPolicy"
    feature_source = (
        "what the policy's own encoder makes of images and words, before what is trained with its head"
    )

    def standalone(self, policy):
        copied = copy.deepcopy(policy)
        return copied.eval(), merge_adapters(copied)

    def save(self, policy, folder):
        policy.save(folder, standalone=True)

    def load(self, folder, contract=None):
        from deas_vla.policies.lerobot.modeling import LeRobotPolicy

        return LeRobotPolicy.load(folder, contract)

    def wrote(self, folder):
        return all((folder / name).is_file() for name in ("policy_preprocessor.json", "contract.json"))

    def origin(self, policy):
        return {"kind": policy.policy.config.type, "feature": policy.feature}

    def image_keys(self, policy):
        from deas_vla.policies.lerobot.processing import camera_name

        return {camera_name(key): key for key in policy.processors.image_keys.values()}


KINDS: dict[str, PolicyKind] = {"groot": SmallVLAKind(), "lerobot": LeRobotKind()}


def kind_of(policy: ChunkPolicy) -> str:
    """The name of a policy's kind.

    Raises:
        UserError: if there is none for its class.
    """
    classes = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(policy).__mro__}
    for name, kind in KINDS.items():
        if kind.policy_class in classes:
            return name
    raise UserError(f"a {type(policy).__name__} cannot be exported; the kinds are {', '.join(KINDS)}")


def kind_in(folder: Path) -> PolicyKind:
    """The kind of the policy that is saved in a folder.

    Raises:
        UserError: if there is none, or of no kind.
    """
    for kind in KINDS.values():
        if kind.wrote(Path(folder)):
            return kind
    raise UserError(f"{folder}: no saved policy there of a kind that this version knows ({', '.join(KINDS)})")


def load_policy(folder: Path, contract: Contract | None = None) -> ChunkPolicy:
    """Reads a saved policy of any kind in evaluation mode.

    Raises:
        UserError: if there is none that this version knows, or a file is missing, cut off or does not fit.
        ContractMismatch: if a contract is given and the policy has another one.
    """
    return kind_in(folder).load(Path(folder), contract)


def save_policy(policy: ChunkPolicy, folder: Path) -> None:
    """Writes a policy of any kind so that `load_policy` reads it, wherever the folder is then.

    Raises:
        UserError: if it is of none that this version knows.
    """
    KINDS[kind_of(policy)].save(policy, Path(folder))


def kind_named(name: object, where: str | Path) -> PolicyKind:
    """The kind of that name.

    Raises:
        UserError: if there is none, naming the file that asks for it.
    """
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(
            f"{where}: policy kind {name!r} is unknown to this version; it has {', '.join(KINDS)}"
        )
    return KINDS[name]
