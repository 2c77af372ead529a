"""What was encoded, on disk: tensors in Arrow shards, found by what they were made of.

    <folder>/<kind>-<hash of its keys>.arrow    rows of (key, kind, dtype, shape, values)

A key is the hash of everything that an entry depends on, so nothing in the folder is ever out of
date: what changed has another key, and what nobody asks for any more lies unused. A shard is
written whole or not at all and named by its keys; so a killed run loses the shard it was at,
several processes can write at once, and folders can be copied together. Any program reads the
shards with `datasets.load_dataset("arrow", data_files="<folder>/*.arrow")`.

Only an index is held, of 31 bytes for each entry. Values are read by position: pages of a mapped
file would count as this process's memory, and there may be terabytes of them.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from hn.errors import DataError, StorageError
from hn.storage import sync_folder

KEY_BYTES = 16
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SCHEMA = pa.schema(
    [
        ("key", pa.binary(KEY_BYTES)),
        ("kind", pa.string()),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("values", pa.large_binary()),  # little-endian, in C order
    ]
)
_KEYS = np.dtype(f"S{KEY_BYTES}")  # compared byte by byte
_PLACES = np.dtype([("file", np.int32), ("form", np.uint16), ("offset", np.int64)])
Form = tuple[torch.dtype, tuple[int, ...]]  # and shape
_MERGED_AT = (
    10_000  # entries; sorting the index anew for every shard would take longer than writing
)


def key_of(*parts: str | bytes) -> bytes:
    """The key of something made of these parts, in this order."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()[:KEY_BYTES]


@dataclass(frozen=True)
class Shard:
    """What a file holds: keys (N,), where each one's values begin, and in which form they are."""

    path: Path
    keys: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    numbers: NDArray[np.int64]  # (N,), of forms
    forms: list[Form]


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
        self._keys = np.empty(0, _KEYS)  # sorted
        self._places = np.empty(0, _PLACES)  # of each key
        self._fresh: list[Shard] = []  # not sorted in yet
        self._fresh_keys: set[bytes] = set()
        self.refresh()

    def __len__(self) -> int:
        self._merge()
        return len(self._keys)

    def refresh(self) -> None:
        """Take in shards that others have written meanwhile."""
        self.damaged = []
        folders = filter(Path.is_dir, (self.folder, *self._others))
        for path in sorted(path for folder in folders for path in folder.glob("*.arrow")):
            if path.name in self._names:
                continue
            try:
                self._take(_open(path))
            except (pa.ArrowInvalid, OSError, ValueError):
                self.damaged.append(path.name)
        self._merge()

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """The positions of the keys that are not there."""
        absent = np.flatnonzero(self._find(keys) < 0).tolist()
        return [place for place in absent if keys[place] not in self._fresh_keys]

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
                "values": [_bytes_of(tensor).tobytes() for tensor in tensors],
            },
            schema=_SCHEMA,
        )
        path = self.folder / f"{kind}-{key_of(*keys).hex()}.arrow"
        write_table(path, table)
        self._take(_open(path))
        self._fresh_keys.update(keys)
        if len(self._fresh_keys) > max(_MERGED_AT, len(self._keys) // 8):
            self._merge()

    def read(self, keys: Sequence[bytes]) -> list[Tensor]:
        """The tensors of these keys. Raises `DataError` if one is missing or cannot be read."""
        self._merge()
        found = self._find(keys)
        if (found < 0).any():
            raise DataError(f"{self.folder} lacks {int((found < 0).sum())} of {len(keys)} entries")
        return [
            _read(self._files[file], offset, *self._forms[form])
            for file, form, offset in self._places[found].tolist()
        ]

    def _take(self, shard: Shard) -> None:
        self._names.add(shard.path.name)
        self._fresh.append(shard)
        self.damaged = [name for name in self.damaged if name != shard.path.name]

    def _merge(self) -> None:
        """Sort in what is fresh."""
        if not self._fresh:
            return
        self._places = np.concatenate([self._places, *map(self._placed, self._fresh)])
        self._keys = np.concatenate([self._keys, *(shard.keys for shard in self._fresh)])
        order = np.argsort(self._keys, kind="stable")
        self._keys, self._places = self._keys[order], self._places[order]
        self._fresh, self._fresh_keys = [], set()

    def _placed(self, shard: Shard) -> NDArray[Any]:
        self._forms += [form for form in shard.forms if form not in self._forms]
        self._files.append(shard.path)
        places = np.empty(len(shard.keys), _PLACES)
        places["file"] = len(self._files) - 1
        places["form"] = np.array([self._forms.index(form) for form in shard.forms])[shard.numbers]
        places["offset"] = shard.offsets
        return places

    def _find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """The place of each key in the index, or -1."""
        wanted = np.frombuffer(b"".join(keys), _KEYS)
        if not len(self._keys):
            return np.full(len(wanted), -1)
        places = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        return np.where(self._keys[places] == wanted, places, -1)


def _open(path: Path) -> Shard:
    """Where everything in a file lies. Raises `ValueError` or an Arrow error for another file."""
    content = pa.memory_map(str(path)).read_buffer()
    table = pa.ipc.open_stream(content).read_all()
    if table.schema != _SCHEMA or table.column("key").num_chunks != 1:
        raise ValueError(f"{path} holds something else")
    batch = table.to_batches()[0]
    kinds, dtypes = batch.column("kind").unique(), batch.column("dtype").unique().to_pylist()
    if len(kinds) != 1 or len(dtypes) != 1 or dtypes[0] not in DTYPES:
        raise ValueError(f"{path} mixes kinds or dtypes")
    values = batch.column("values")
    _, starts, data = values.buffers()
    shapes = batch.column("shape").flatten().to_numpy().reshape(len(batch), -1)
    distinct, numbers = np.unique(shapes, axis=0, return_inverse=True)
    return Shard(
        path,
        np.frombuffer(batch.column("key").buffers()[1], _KEYS, count=len(batch)).copy(),
        np.frombuffer(starts, np.int64, count=len(batch)) + (data.address - content.address),
        numbers.reshape(-1),
        [(DTYPES[dtypes[0]], tuple(map(int, shape))) for shape in distinct],
    )


def _read(path: Path, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Values at a place in a file. Raises `DataError` if they are not there any more."""
    values = torch.empty(shape, dtype=dtype)
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            read = os.preadv(descriptor, [_bytes_of(values).data], offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if read != values.nbytes:
        raise DataError(f"{path} was cut off while in use: remove it and start again")
    return values


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """The memory of a tensor; of a contiguous one not copied."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow stream, whole or not at all. Raises `StorageError`."""
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
            "latent_cache_dir; the files written before are whole."
        ) from error
