"""Encoded pictures on disk: Arrow shards, found by what they were made of.

    <folder>/<name of its content>.arrow    rows of (key, shape, moments)

A key is the hash of everything that an encoding depends on, so nothing in the folder is ever out
of date: what changed has another key, and what nobody asks for any more lies unused. A shard is
written whole or not at all and named by its keys; so a killed run loses the shard it was at,
several processes can write at once, and folders can be copied together. Any program reads the
shards with `datasets.load_dataset("arrow", data_files="<folder>/*.arrow")`.

Arrow files are mapped into memory: what is held is an index of 24 bytes for each row.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from hn.errors import DataError, StorageError
from hn.storage import sync_folder

KEY_BYTES = 16
_SCHEMA = pa.schema(
    [
        ("key", pa.binary(KEY_BYTES)),
        ("shape", pa.list_(pa.int32())),
        ("moments", pa.large_binary()),  # float32, little-endian
    ]
)
_KEYS = np.dtype(f"S{KEY_BYTES}")  # compared byte by byte


def key_of(*parts: str | bytes) -> bytes:
    """The key of something made of these parts, in this order."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()[:KEY_BYTES]


class Store:
    """Tensors by key, in the shards of a folder. A damaged shard counts as absent and is named."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: list[pa.Table] = []
        self._names: set[str] = set()
        self._keys = np.empty(0, _KEYS)  # sorted
        self._places = np.empty((0, 2), np.int32)  # (shard, row) of each key
        self.damaged: list[str] = []
        self.refresh()

    def __len__(self) -> int:
        return len(self._keys)

    def refresh(self) -> None:
        """Take in shards that others have written meanwhile."""
        found = sorted(self._folder.glob("*.arrow")) if self._folder.is_dir() else []
        self.damaged = []
        for path in found:
            if path.name in self._names:
                continue
            try:
                self._tables.append(_map(path))
                self._names.add(path.name)
            except (pa.ArrowInvalid, OSError, ValueError):
                self.damaged.append(path.name)
        self._index()

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """The positions of the keys that are not there."""
        return np.flatnonzero(self._find(keys) < 0).tolist()

    def write(self, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None:
        """Add a shard. Raises `StorageError`; what was there before is intact then."""
        table = pa.table(
            {
                "key": list(keys),
                "shape": [list(tensor.shape) for tensor in tensors],
                "moments": [tensor.float().contiguous().numpy().tobytes() for tensor in tensors],
            },
            schema=_SCHEMA,
        )
        _write_shard(self._folder / f"{key_of(*keys).hex()}.arrow", table)
        self.refresh()

    def read(self, keys: Sequence[bytes]) -> list[Tensor]:
        """The tensors of these keys, float32. Raises `DataError` if one is missing."""
        found = self._find(keys)
        if (found < 0).any():
            raise DataError(f"{self._folder} lacks {int((found < 0).sum())} of {len(keys)} entries")
        return [_tensor(self._tables[shard], row) for shard, row in self._places[found].tolist()]

    def _index(self) -> None:
        keys = [_keys(table) for table in self._tables]
        places = [
            np.stack([np.full(len(rows), shard), np.arange(len(rows))], axis=1)
            for shard, rows in enumerate(keys)
        ]
        every = np.concatenate([np.empty(0, _KEYS), *keys])
        order = np.argsort(every, kind="stable")
        self._keys = every[order]
        self._places = np.concatenate([self._places[:0], *places]).astype(np.int32)[order]

    def _find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """The place of each key in the index, or -1."""
        wanted = np.frombuffer(b"".join(keys), _KEYS)
        if not len(self._keys):
            return np.full(len(wanted), -1)
        places = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        return np.where(self._keys[places] == wanted, places, -1)


def _map(path: Path) -> pa.Table:
    """A shard, mapped into memory. Raises `ValueError` or an Arrow error for any other file."""
    table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    if table.schema != _SCHEMA:
        raise ValueError(f"{path} has other columns")
    return table


def _keys(table: pa.Table) -> NDArray[np.bytes_]:
    """The keys (N,) of a shard, without a copy."""
    parts = [
        np.frombuffer(chunk.buffers()[1], _KEYS, count=len(chunk), offset=chunk.offset * KEY_BYTES)
        for chunk in table.column("key").chunks
    ]
    return np.concatenate([np.empty(0, _KEYS), *parts])


def _tensor(table: pa.Table, row: int) -> Tensor:
    values = table.column("moments")[row].as_buffer()
    shape = table.column("shape")[row].as_py()
    return torch.frombuffer(bytearray(values), dtype=torch.float32).view(shape)


def _write_shard(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}. Free some space or choose another "
            "latent_cache_dir; the shards written before are whole."
        ) from error
