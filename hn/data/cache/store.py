"""What was encoded, on disk: tensors in Arrow shards, found by what they were made of.

    <folder>/<kind>-<hash of its keys>.arrow    as in `hn.data.cache.tensor_files`

A key is the hash of everything that an entry depends on, so nothing in the folder is ever out of
date: what changed has another key, and what nobody asks for any more lies unused. A shard is
written whole or not at all and named by its keys; so a killed run loses the shard it was at,
several processes can write at once, and folders can be copied together. Any program reads the
shards with `datasets.load_dataset("arrow", data_files="<folder>/*.arrow")`.

Only an index is held, of 31 bytes for each entry. Values are read by position: pages of a mapped
file would count as this process's memory, and there may be terabytes of them.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from hn.data.cache.tensor_files import (
    DTYPES,
    KEY_BYTES,
    SCHEMA,
    Form,
    Shard,
    bytes_of,
    halves_of,
    open_shard,
    read_values,
    write_table,
)
from hn.errors import DataError

_PLACES = np.dtype([("file", np.int32), ("form", np.uint16), ("offset", np.int64)])
MANY = 1000  # keys
AT_ONCE = 64  # entries that the disk is asked for, and files open for them
# Entries; sorting the index anew for every shard would take longer than writing.
_MERGED_AT = 10_000


def key_of(*parts: str | bytes) -> bytes:
    """The key of something made of these parts, in this order."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()[:KEY_BYTES]


class Store:
    """Tensors by key, in the shards of a folder; those in `others` are read, too.

    A damaged shard counts as absent and is named.
    """

    def __init__(self, folder: Path, *others: Path) -> None:
        self.folder = folder
        self._others = others
        self.damaged: list[str] = []
        self._files: list[Path] = []
        self._names: set[str] = set()  # of the files
        self._forms: list[Form] = []
        self._firsts = np.empty(0, np.uint64)  # halves of the keys, sorted
        self._seconds = np.empty(0, np.uint64)
        self._places = np.empty(0, _PLACES)  # of each key
        self._fresh: list[tuple[NDArray[np.uint64], NDArray[Any]]] = []  # not sorted in yet
        self._fresh_keys: set[bytes] = set()
        self.refresh()

    def __len__(self) -> int:
        self._merge()
        return len(self._places)

    def refresh(self) -> None:
        """Take in shards that others have written meanwhile."""
        self.damaged = []
        folders = filter(Path.is_dir, (self.folder, *self._others))
        for path in sorted(path for folder in folders for path in folder.glob("*.arrow")):
            if path.name in self._names:
                continue
            try:
                self._take(open_shard(path))
            except (pa.ArrowInvalid, OSError, ValueError):
                self.damaged.append(path.name)
        self._merge()

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """The positions of the keys that are not there."""
        absent = np.flatnonzero(self._find(b"".join(keys)) < 0).tolist()
        return [place for place in absent if keys[place] not in self._fresh_keys]

    def lacks(self, keys: pa.Buffer) -> int:
        """How many of these keys, one after the other, are not there."""
        self._merge()
        return int((self._find(keys) < 0).sum())

    def write(self, kind: str, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None:
        """Add a shard of tensors of one kind, dtype and number of dimensions.

        Raises `StorageError`; what was there before is intact then.
        """
        names = {dtype: name for name, dtype in DTYPES.items()}
        table = pa.table(
            {
                "key": list(keys),
                "kind": [kind] * len(keys),
                "dtype": [names[tensor.dtype] for tensor in tensors],
                "shape": [list(tensor.shape) for tensor in tensors],
                "values": [bytes_of(tensor).tobytes() for tensor in tensors],
            },
            schema=SCHEMA,
        )
        path = self.folder / f"{kind}-{key_of(*keys).hex()}.arrow"
        write_table(path, table)
        self._take(open_shard(path))
        self._fresh_keys.update(keys)
        if len(self._fresh_keys) > max(_MERGED_AT, len(self._places) // 8):
            self._merge()

    def read(self, keys: Sequence[bytes]) -> list[Tensor]:
        """The tensors of these keys. Raises `DataError` if one is missing or cannot be read."""
        places = self._located(keys)
        forms = [self._forms[form] for _, form, _ in places]
        tensors = [torch.empty(shape, dtype=dtype) for dtype, shape in forms]
        self._fill([*map(bytes_of, tensors)], places)
        return tensors

    def stack(self, keys: Sequence[bytes]) -> Tensor:
        """The same as one tensor (N, ...), where all have one dtype and shape."""
        places = self._located(keys)
        (form,) = {form for _, form, _ in places}
        dtype, shape = self._forms[form]
        stacked = torch.empty((len(keys), *shape), dtype=dtype)
        memory, size = bytes_of(stacked), stacked[0].nbytes
        buffers = [memory[start : start + size] for start in range(0, len(memory), size)]
        self._fill(buffers, places)
        return stacked

    def _located(self, keys: Sequence[bytes]) -> list[tuple[int, int, int]]:
        """File, form and offset of each key. Raises `DataError` if one is missing."""
        self._merge()
        found = self._find(b"".join(keys))
        if (found < 0).any():
            raise DataError(f"{self.folder} lacks {int((found < 0).sum())} of {len(keys)} entries")
        return self._places[found].tolist()

    def _fill(self, buffers: list[memoryview], places: list[tuple[int, int, int]]) -> None:
        """Read what is at these places. Raises `DataError` if it cannot be read."""
        for start in range(0, len(places), AT_ONCE):
            chunk = places[start : start + AT_ONCE]
            paths = [self._files[file] for file, _, _ in chunk]
            offsets = [offset for _, _, offset in chunk]
            read_values(paths, offsets, buffers[start : start + AT_ONCE])

    def _take(self, shard: Shard) -> None:
        self._names.add(shard.path.name)
        self._fresh.append((shard.keys, self._placed(shard)))
        self.damaged = [name for name in self.damaged if name != shard.path.name]

    def _merge(self) -> None:
        """Sort in what is fresh."""
        if not self._fresh:
            return
        keys, places = zip(*self._fresh, strict=True)
        self._fresh, self._fresh_keys = [], set()
        firsts = np.concatenate([self._firsts, *(halves[:, 0] for halves in keys)])
        order = np.argsort(firsts, kind="stable")
        self._firsts = firsts[order]
        self._seconds = np.concatenate([self._seconds, *(halves[:, 1] for halves in keys)])[order]
        self._places = np.concatenate([self._places, *places])[order]

    def _placed(self, shard: Shard) -> NDArray[Any]:
        self._forms += [form for form in shard.forms if form not in self._forms]
        self._files.append(shard.path)
        places = np.empty(len(shard.keys), _PLACES)
        places["file"] = len(self._files) - 1
        places["form"] = np.array([self._forms.index(form) for form in shard.forms])[shard.numbers]
        places["offset"] = shard.offsets
        return places

    def _find(self, keys: bytes | pa.Buffer) -> NDArray[np.int64]:
        """The place in the index of each of these keys, one after the other; -1: it has none."""
        wanted = halves_of(keys)
        if not len(self._places):
            return np.full(len(wanted), -1)
        # Of many, neighbours are found many times as fast.
        order = np.argsort(wanted[:, 0]) if len(wanted) > MANY else slice(None)
        firsts, seconds = wanted[order].T
        last = len(self._places) - 1
        places = np.searchsorted(self._firsts, firsts).clip(max=last)
        while True:
            half = self._firsts[places] == firsts
            same = half & (self._seconds[places] == seconds)
            if same.all():
                break
            passed = half & ~same & (places < last)  # keys that share their first half
            if not passed.any():
                break
            places += passed
        found = np.empty_like(places)
        found[order] = np.where(same, places, -1)
        return found
