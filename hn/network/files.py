"""Any hypernetwork file, by what it contains (reading) and by its ending (writing).

`load` and `save` are for those who compute; `read` and `write` keep the file's own precision.
"""

from os import PathLike
from pathlib import Path

from hn.errors import ModelError
from hn.network import a1111, native
from hn.network.contents import Contents
from hn.network.module import Hypernetwork
from hn.network.remote import locate
from hn.storage import write_bytes

_WRITERS = {".pt": a1111.to_bytes, ".safetensors": native.to_bytes}


def load(path: str | PathLike[str], *, revision: str | None = None) -> Hypernetwork:
    """Read a `.pt` or `.safetensors` hypernetwork, float32, on the CPU, in evaluation mode.

    What a file is, is read from its bytes and not from its name. `path` may also be a repository
    of the Hugging Face Hub, `owner/name` or `owner/name/file.safetensors`, at a `revision`; a file
    of that name here comes first. Raises `ModelError` with the file, the reason, the remedy, and
    `HubError` where a repository cannot be read.
    """
    contents = read(locate(path, revision))
    try:
        return contents.build()
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def save(net: Hypernetwork, path: str | PathLike[str]) -> None:
    """Write a `.pt` (A1111, ComfyUI) or `.safetensors` file; its stored name is the stem.

    Raises `ModelError` for another ending and for what a `.pt` cannot say (`sharing`),
    `StorageError` if the disk refuses; an old file is intact then.
    """
    write(Contents.of(net), path)


def read(path: str | PathLike[str]) -> Contents:
    """What a file says, as `load` reads it, even if its numbers are spoilt."""
    path = Path(path)
    return native.read(path) if is_safetensors(path) else a1111.read(path)


def write(contents: Contents, path: str | PathLike[str]) -> None:
    """Write contents, as `save` does."""
    path = Path(path)
    check_ending(path)
    write_bytes(path, _WRITERS[path.suffix](contents, path.stem))


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as a `.safetensors` does. Raises `ModelError` if it is not there."""
    if path.exists() and not path.is_file():  # a pipe would keep us waiting, a device never ends
        raise ModelError(f"cannot read {path}: it is not a file")
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:9] == b"{"
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def check_ending(path: Path) -> None:
    """Refuse to write what is neither. Raises `ModelError`."""
    if path.suffix not in _WRITERS:
        raise ModelError(
            f"cannot write {path}: the ending is '{path.suffix}', allowed are {', '.join(_WRITERS)}"
        )
