"""Files and folders that are there whole or not at all."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from deas_vla.errors import UserError, as_user_error

# Begins the note on an error that happened while a file was written; the file's path follows.
WRITING = "while writing "
PARTIAL = ".partial"  # ends the name under which a process writes, which is .NAME.PROCESS.partial
# Of a file, the bytes at its beginning and at its end that are hashed: there are the sizes of all frames of a video,
# and of all pages of a parquet file.
HASHED = 1 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary name, of a file or a folder, to write to, and renames it when the block ends without an error.

    A kill at any moment leaves the old content or the new one, never a part (of a folder, between its two renames, the
    old one as ``.NAME.old``); what a process that is gone left under its temporary name is cleared away first. Several
    processes may write one path: the last to end wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
        writer = left.name.removesuffix(PARTIAL).rpartition(".")[2]
        if left == temporary or (writer.isdigit() and not _alive(int(writer))):
            _remove(left)
    old = path.with_name(f".{path.name}.old")
    try:
        yield temporary
        if temporary.is_file():
            # On the disk before it gets its name: a power cut must not leave the new name with nothing in it.
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if temporary.is_dir() and path.is_dir():
            # A folder cannot be renamed over a full one: step aside first.
            _remove(old)
            os.replace(path, old)
        os.replace(temporary, path)
        _remove(old)
    except Exception as error:
        # Not every library says which file it could not write.
        error.add_note(f"{WRITING}{path}")
        raise
    finally:
        _remove(temporary)


def write_json(path: Path, value: object) -> None:
    """Writes JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """A JSON object from a file; a UserError if the file is missing, cut off or holds something else."""
    with as_user_error(f"{path}: missing, cut off or damaged; make it or copy it again"):
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        if file != path:
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def file_identity(file: Path) -> str:
    """SHA-256 over a file's size and its first and last MiB: a data set of 500 GB is not read whole for it."""
    status = Path(file).stat()
    return _file_identity(Path(file), status.st_size, status.st_mtime_ns)


def folder_identity(folder: Path) -> str:
    """SHA-256 over the names and sizes of a data set's files, and of what `file_identity` says of its tables.

    Videos count by their sizes; hidden files and the card, which hubs and desktops change, do not count.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: there is no such folder of a data set")
    digest = hashlib.sha256()
    for file in sorted(Path(folder).rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and name.name != "README.md" and not any(part.startswith(".") for part in name.parts):
            content = file.stat().st_size if file.suffix == ".mp4" else file_identity(file)
            digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


@lru_cache(1 << 16)
def _file_identity(file: Path, size: int, _: int) -> str:
    with file.open("rb") as stream:
        digest = hashlib.sha256(f"{size} ".encode() + stream.read(HASHED))
        stream.seek(max(size - HASHED, 0))
        digest.update(stream.read())
    return digest.hexdigest()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
