"""Weights in `.safetensors` files of any size, read and written one tensor at a time."""

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from hn.errors import ModelError
from hn.storage import whole

DTYPES = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip
_SIZES = {"64": 8, "32": 4, "16": 2}


class Entry(NamedTuple):
    """A tensor to be written: its name, what the header says of it, and where it comes from."""

    name: str
    dtype: str  # F16 and so on, as in the header
    shape: tuple[int, ...]
    load: Callable[[], Tensor]


@dataclass(frozen=True)
class TensorFile:
    """A `.safetensors` file: what its header says; tensors are read when asked for."""

    path: Path
    entries: Mapping[str, tuple[str, tuple[int, ...]]]  # (dtype, shape) by name
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the header. Raises `ModelError` for another kind of file."""
        try:
            with safe_open(path, framework="pt") as file:  # which checks the header, too
                metadata = file.metadata() or {}
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(
                f"cannot read {path} as .safetensors: {error}. A .ckpt or .bin must be converted "
                "first."
            ) from error
        header.pop("__metadata__", None)
        in_order = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        entries = {name: (it["dtype"], tuple(it["shape"])) for name, it in in_order}
        return cls(path, entries, metadata)

    def read(self, name: str) -> Tensor:
        """One tensor, as it is stored."""
        return self._opened.get_tensor(name)

    @cached_property
    def _opened(self) -> Any:
        return safe_open(self.path, framework="pt").__enter__()

    def entry(self, name: str, changed: Mapping[str, Tensor] | None = None) -> Entry:
        """A tensor to be written as it is stored, or as it was `changed`."""
        dtype, shape = self.entries[name]
        if changed is not None and name in changed:
            return Entry(name, DTYPES[changed[name].dtype], shape, lambda: changed[name])
        return Entry(name, dtype, shape, lambda: self.read(name))


def write(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str]) -> None:
    """Write a `.safetensors`, whole or not at all, with one tensor in memory. `StorageError`."""
    entries = list(entries)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    for entry in entries:
        end = place + _nbytes(entry)
        header[entry.name] = {
            "dtype": entry.dtype, "shape": entry.shape, "data_offsets": [place, end],
        }  # fmt: skip
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin where a processor likes to read
    with (
        whole(path, "another -o") as file,
        tqdm(desc=path.name, total=place, unit="B", unit_scale=True, delay=1, leave=False) as bar,
    ):
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            data = entry.load().contiguous().flatten().view(torch.uint8).numpy().data
            assert data.nbytes == _nbytes(entry), entry.name
            bar.update(file.write(data))


def _nbytes(entry: Entry) -> int:
    bits = entry.dtype.lstrip("FBIUC")
    size = _SIZES.get(bits, 1)  # 8 bits with whatever they are called, or BOOL
    return size * torch.Size(entry.shape).numel()
