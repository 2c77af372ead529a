"""Files that are whole or absent: written under a temporary name, flushed to the disk, then
renamed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from hn.errors import StorageError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` as `whole` does, to the target of a symbolic link. Raises `StorageError`."""
    with whole(path.resolve(), "another folder; what was there before is intact") as file:
        file.write(data)


@contextmanager
def whole(path: Path, instead: str) -> Iterator[BinaryIO]:
    """A file to write so that a crash leaves the old one or the new one, never half of one.

    Keeps the umask's file mode. `instead` ends what is advised if it cannot be written. Raises
    `StorageError` (disk full, no permission); the old file is intact then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}. Free some space or choose {instead}."
        ) from error
    finally:  # also for what is no OSError: Ctrl-C
        with suppress(OSError):  # it was renamed, or the folder itself is what is wrong
            temporary.unlink()


def prove_writable(folder: Path, setting: str) -> None:
    """Make a folder and write into it, before hours of work. Raises `StorageError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        raise StorageError(
            f"{setting} '{folder}' cannot be written: {error.strerror or error}. Give a folder "
            "that is yours, on a disk with space; it is made if it is not there."
        ) from error


def existing_parent(folder: Path) -> Path:
    """The folder itself or the next above that is there: the disk on which it lies or will lie."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
