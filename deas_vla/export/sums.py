"""SHA256SUMS: one line for every file of a folder, as ``sha256sum --check`` reads it."""

from pathlib import Path

from deas_vla.errors import UserError
from deas_vla.files import atomic_path, sha256_of

SUMS = "SHA256SUMS"
# What git and download tools put beside the files of a folder.
IGNORED = (".git", ".gitattributes", ".cache")
# Longer lists of files are cut in a message.
TOLD = 5


def write_sums(folder: Path) -> None:
    """Seals a folder: from here on `check_sums` knows every file in it."""
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
    listed = dict(reversed(line.split("  ", 1)) for line in text.split("\n") if "  " in line)
    found = _sums(folder)
    problems = [f"{name} is missing" for name in listed.keys() - found.keys()]
    problems += [f"{name} is not listed" for name in found.keys() - listed.keys()]
    problems += [
        f"{name} was changed" for name in found.keys() & listed.keys() if found[name] != listed[name]
    ]
    if not problems and text != _text(found):
        problems = [f"{SUMS} was changed"]
    if problems:
        told = [repr(p)[1:-1] for p in sorted(problems)[:TOLD]]
        told += [f"and {len(problems) - TOLD} more"] * (len(problems) > TOLD)
        raise UserError(f"{folder}, by its {SUMS}: {'; '.join(told)}; copy or export it again")
    return len(found)


def _sums(folder: Path) -> dict[str, str]:
    """Relative path to hash of every file but SHA256SUMS, in order."""
    from tqdm import tqdm

    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = {k: files[k] for k in sorted(files) if k != SUMS and k.partition("/")[0] not in IGNORED}
    return {
        name: sha256_of(path)
        for name, path in tqdm(files.items(), desc="SHA-256", unit="file", delay=2, leave=False)
    }


def _text(sums: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())
