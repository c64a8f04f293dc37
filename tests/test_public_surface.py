"""What `from deas_vla import …` gives: every name is there, explained, with the shapes of its tensors."""

import ast
import dataclasses
import inspect
import re
import typing

import pytest
from source_tree import sources

import deas_vla

pytestmark = pytest.mark.unit

# (B, H, A) or (B,) or (H, W, 3): letters, numbers and dots, separated by commas; or a scalar.
SHAPE = re.compile(r"\bscalar|\((?:[A-Za-zΣ'′…. ×0-9≥+*-]+,)+ ?[A-Za-z'′. 0-9≥+*-]*\)")


def takes_tensors(annotation: object) -> bool:
    return bool(re.search(r"\b(Tensor|ndarray)\b", str(annotation)))


def unexplained(name: str, thing: object) -> list[str]:
    """Of a function, or of a class with its methods and fields: what has tensors and no shape in a docstring."""
    if not (inspect.getdoc(thing) or "").strip():
        return [f"{name} has no docstring"]
    if not inspect.isclass(thing):
        hints = typing.get_type_hints(thing) if inspect.isfunction(thing) else {}
        tensors = any(map(takes_tensors, hints.values()))
        return [f"{name} states no shape"] if tensors and not SHAPE.search(thing.__doc__) else []
    wrong = []
    if dataclasses.is_dataclass(thing) and any(takes_tensors(field.type) for field in dataclasses.fields(thing)):
        wrong += [] if SHAPE.search(thing.__doc__) else [f"{name} states no shape of its fields"]
    for key, member in vars(thing).items():
        function = getattr(member, "__func__", member)
        if key.startswith("_") or not inspect.isfunction(function):
            continue
        hints = function.__annotations__
        # What a subclass overrides is explained where it is declared.
        text = " ".join(
            vars(base)[key].__doc__ or "" for base in thing.__mro__ if inspect.isfunction(vars(base).get(key))
        )
        if any(map(takes_tensors, hints.values())) and not SHAPE.search(text):
            wrong.append(f"{name}.{key} states no shape")
    return wrong


@pytest.mark.parametrize("name", deas_vla.__all__)
def test_every_public_name_is_there_and_states_its_shapes(name):
    assert unexplained(name, getattr(deas_vla, name)) == []


def test_the_check_itself_sees_what_is_missing():
    from torch import Tensor

    def bare(x: Tensor) -> Tensor:
        """Adds one."""
        return x + 1

    def told(x: Tensor) -> Tensor:
        """(B, A) numbers to (B,) sums."""
        return x.sum(1)

    class Holder:
        """Has a method."""

        def forward(self, x: Tensor) -> Tensor:
            """Adds one."""
            return x + 1

    assert unexplained("bare", bare) == ["bare states no shape"]
    assert unexplained("told", told) == []
    assert unexplained("Holder", Holder) == ["Holder.forward states no shape"]


def test_names_are_listed_once_and_others_are_no_attributes():
    assert len(set(deas_vla.__all__)) == len(deas_vla.__all__) > 20
    assert set(deas_vla.__all__) <= set(dir(deas_vla))
    with pytest.raises(AttributeError, match="has no attribute 'Opinions'"):
        deas_vla.Opinions  # noqa: B018


# Words that only this project used, and what the field says (the table of the design).
PRIVATE = {
    "opinions": "q_values", "words_weight": "text_weight", "looked_at": "encode_images", "sight": "episode_id",
    "first_sights": "episode_ids", "clumsy": "noisy", "sole_process": "lock", "going_on": "prefix",
    "yardstick": "baseline", "rival": "baseline", "judged": "labelled", "mend": "fix", "eyes": "image_encoder",
    "told": "summary", "says": "describe", "dear": "expensive", "apart": "distance", "chances": "probabilities",
    "followed": "target", "sentence": "instruction", "alone": "lock", "claim": "lock",
}  # fmt: skip


def identifiers(source: str) -> set[str]:
    """Names that a file defines for others: classes, functions, their parameters, fields and module constants."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found |= {node.name, *(a.arg for a in [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs])}
        elif isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def test_private_words_are_gone_from_names():
    wrong = [
        f"{module}: {name} (say {PRIVATE[name.lower()]})"
        for module, source in sources("deas_vla", "recipes", "robots").items()
        for name in sorted(identifiers(source))
        if name.lower() in PRIVATE
    ]
    assert not wrong, "\n".join(wrong)
