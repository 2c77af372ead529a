"""`hn.load` and `hn.save`: any hypernetwork file, by what it contains (reading) and by its ending
(writing).
"""

from os import PathLike
from pathlib import Path

from hn.errors import ModelError
from hn.network import a1111, native
from hn.network.module import Hypernetwork
from hn.storage import write_bytes

_WRITERS = {".pt": a1111.to_bytes, ".safetensors": native.to_bytes}


def load(path: str | PathLike[str]) -> Hypernetwork:
    """Read a `.pt` or `.safetensors` hypernetwork, float32, on the CPU, in evaluation mode.

    What a file is, is read from its bytes and not from its name. Raises `ModelError` with the file,
    the reason, the remedy.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    return native.read(path) if start[8:9] == b"{" else a1111.read(path)


def save(net: Hypernetwork, path: str | PathLike[str]) -> None:
    """Write a `.pt` (A1111, ComfyUI) or `.safetensors` file; its stored name is the stem.

    Raises `ModelError` for another ending, `StorageError` if the disk refuses; an old file is
    intact then.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ModelError(
            f"cannot write {path}: the ending is '{path.suffix}', allowed are {', '.join(_WRITERS)}"
        )
    write_bytes(path, _WRITERS[path.suffix](net, path.stem))
