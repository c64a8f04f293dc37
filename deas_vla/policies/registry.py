"""Policies by name. A new one is one file with `@register_policy("name")` on its class; docs/policies.md shows one.

A policy of another package is found by an entry point of the group ``deas_vla.policies`` (``linear =
my_package.linear``) or by a name that a user types: ``my_package.linear:linear``, ``path/to/linear.py:linear``.
"""

from collections.abc import Callable
from pathlib import Path

from deas_vla.data.contract import Contract
from deas_vla.errors import UserError, as_user_error
from deas_vla.files import read_json
from deas_vla.policies.chunk_policy import TYPE_FILE, ChunkPolicy
from deas_vla.registry import Registry

POLICIES: Registry[type[ChunkPolicy]] = Registry(
    "policy",
    "deas_vla.policies",
    {"small_vla": "deas_vla.policies.small_vla.modeling", "lerobot": "deas_vla.policies.lerobot.modeling"},
)


def register_policy[P: type[ChunkPolicy]](name: str) -> Callable[[P], P]:
    """Decorator: registers a class of policies under a name, which saved folders remember."""

    def add(policy_class: P) -> P:
        policy_class.type_name = name
        return POLICIES.register(name)(policy_class)

    return add


def load_policy(folder: str | Path, contract: Contract | None = None) -> ChunkPolicy:
    """Reads a saved policy of any type in evaluation mode; its type is a registered name, never a module to import.

    Raises UserError if there is none that this version knows, or a file is missing, cut off or does not fit, and
    ContractMismatch if a contract is given and the policy has another one.
    """
    path = Path(folder) / TYPE_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no saved policy there (no {TYPE_FILE})")
    name = read_json(path).get("type")
    with as_user_error(f"{path}: of a type that is not known here", UserError):
        policy_class = POLICIES.stored(name)
    return policy_class.load(folder, contract)
