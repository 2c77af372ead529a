"""Files that are whole or absent: written under a temporary name, flushed to the disk, then
renamed.
"""

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from hn.errors import StorageError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, never half of one.

    Follows a symbolic link to its target, keeps the umask's file mode. Raises `StorageError` (disk
    full, no permission); the old file is intact then.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # the folder itself may be what is wrong
            temporary.unlink()
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}. Free some space or choose another "
            "folder; what was there before is intact."
        ) from error


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


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
