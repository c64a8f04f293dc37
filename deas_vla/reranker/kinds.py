"""The kinds of policies that a reranker can hold, and how each is written and read."""

from abc import ABC, abstractmethod
from pathlib import Path

from deas_vla.errors import UserError
from deas_vla.policies.adapters import Merged
from deas_vla.policies.policy import ChunkPolicy


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
        """A copy whose `save` writes all that the policy needs: adapters merged, no reference to another folder."""

    @abstractmethod
    def load(self, folder: Path) -> ChunkPolicy:
        """Reads on the CPU, in evaluation mode, what the `save` of a standalone policy wrote.

        Raises:
            UserError: naming the file that is missing, cut off or does not fit.
        """

    @abstractmethod
    def wrote(self, folder: Path) -> bool:
        """Whether a folder looks like a saved policy of this kind."""

    @abstractmethod
    def origin(self, policy: ChunkPolicy) -> dict[str, str | int | None]:
        """What a reader of the manifest should know of the base model: its name, revision and tuning."""


class GrootKind(PolicyKind):
    """The GR00T-style policy of this project."""

    policy_class = "deas_vla.policies.groot.modeling.GrootPolicy"
    feature_source = (
        "the tokens that the action head attends to, after the backbone's last layer that is kept"
    )

    def standalone(self, policy):
        from deas_vla.policies.groot.standalone import standalone

        return standalone(policy)

    def load(self, folder):
        from deas_vla.policies.groot.modeling import GrootPolicy

        return GrootPolicy.load(folder)

    def wrote(self, folder):
        from deas_vla.policies.groot.checkpoint import BACKBONE

        return (folder / BACKBONE).is_dir()

    def origin(self, policy):
        return {
            "backbone": policy.config.backbone or "embedded",
            "backbone_weights": policy.backbone.base_hash,
            "tune": policy.config.tune,
        }


KINDS: dict[str, PolicyKind] = {"groot": GrootKind()}


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
