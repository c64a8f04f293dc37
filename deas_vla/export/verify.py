"""Is an exported reranker what it was? Its files (SHA256SUMS), its parts, and what it decides."""

from pathlib import Path

from deas_vla.errors import UserError
from deas_vla.export.golden import GOLDEN, Golden, Tolerance
from deas_vla.export.lerobot_files import check_lerobot_files
from deas_vla.export.manifest import MANIFEST
from deas_vla.export.reranker import Reranker
from deas_vla.files import atomic_path, sha256_of

SUMS = "SHA256SUMS"
# What git and download tools put beside the files of a folder.
IGNORED = (".git", ".gitattributes", ".cache")
# Longer lists of files are cut in a message.
MOST_LISTED = 5


def verify(folder: str | Path) -> str:
    """Checks a reranker from the outside in, on the CPU.

    First that every file is there and unchanged, then that the parts are those of the manifest, then that the golden
    inputs still give the same scores and the same choices.

    Returns:
        What was checked, in one line.

    Raises:
        UserError: naming what differs.
    """
    folder = Path(folder)
    files = check_sums(folder)
    reranker = Reranker.load(folder)
    check_lerobot_files(reranker.manifest, folder)
    golden = Golden.load(folder / GOLDEN)
    contract, scorer = reranker.contract, reranker.decider.scorer
    if golden.contract != contract.fingerprint:
        raise UserError(
            f"{folder / GOLDEN} was recorded under another contract "
            f"({golden.contract[:12]} against {contract.fingerprint[:12]}); export the reranker again"
        )
    golden.observation.require_fits(contract)
    replay = Golden.record(reranker.decider, golden.observation, golden.keys)
    tolerance = Tolerance.of(reranker.policy)
    lines = golden.differences(replay, contract, scorer.score_range, tolerance)
    lines += golden.other_choices(replay, scorer.score_range, tolerance)
    if lines:
        raise UserError(f"{folder} does not decide as it did when it was exported: {'; '.join(lines)}")
    decided = f"{len(golden.keys)} golden inputs decided as before"
    return f"{folder}: {files} files unchanged, parts as in {MANIFEST}, {decided}"


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS: one line for every file of a folder, as ``sha256sum --check`` reads it."""
    with atomic_path(Path(folder) / SUMS) as temporary:
        temporary.write_text(_text(_sums(Path(folder))), encoding="utf-8")


def check_sums(folder: Path) -> int:
    """Compares every file of a folder with SHA256SUMS.

    Returns:
        How many files there are.

    Raises:
        UserError: naming the files that are missing, changed, or not listed.
    """
    folder = Path(folder)
    try:
        text = (folder / SUMS).read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UserError(
            f"{folder / SUMS} cannot be read ({error.strerror}); is {folder} a reranker made by deas-vla export?"
        ) from error
    expected = dict(reversed(line.split("  ", 1)) for line in text.split("\n") if "  " in line)
    found = _sums(folder)
    problems = [
        f"{name} {'is missing' if name not in found else 'is not listed' if name not in expected else 'was changed'}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if not problems and text != _text(found):
        problems = [f"{SUMS} was changed"]
    if problems:
        listed = [repr(problem)[1:-1] for problem in problems[:MOST_LISTED]]
        listed += [f"and {len(problems) - MOST_LISTED} more"] * (len(problems) > MOST_LISTED)
        raise UserError(f"{folder}, by its {SUMS}: {'; '.join(listed)}; copy or export it again")
    return len(found)


def _sums(folder: Path) -> dict[str, str]:
    """Relative path to hash of every file but SHA256SUMS, in order."""
    from tqdm import tqdm

    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != SUMS and name.partition("/")[0] not in IGNORED]
    progress = tqdm(names, desc="SHA-256", unit="file", delay=2, leave=False)
    return {name: sha256_of(folder / name) for name in progress}


def _text(sums: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())
