"""One file of encoded tensors: written whole or not at all, looked through once, read by position.

Rows of (key, kind, dtype, shape, values), as an Arrow stream.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from hn.errors import DataError
from hn.storage import whole

KEY_BYTES = 16
OF_PROMPTS = ("context", "pooled")  # the kinds of entries that no picture names
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCHEMA = pa.schema(
    [
        ("key", pa.binary(KEY_BYTES)),
        ("kind", pa.string()),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("values", pa.large_binary()),  # little-endian, in C order
    ]
)
Form = tuple[torch.dtype, tuple[int, ...]]  # and shape


@dataclass(frozen=True)
class Shard:
    """What a file holds: keys (N, 2), where each one's values begin, and in which form they are."""

    path: Path
    keys: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    numbers: NDArray[np.int32]  # (N,), of forms
    forms: list[Form]


def open_shard(path: Path) -> Shard:
    """Where everything in a file lies. Raises `ValueError` or an Arrow error for another file."""
    content = pa.memory_map(str(path)).read_buffer()
    table = pa.ipc.open_stream(content).read_all()
    if table.schema != SCHEMA or table.column("key").num_chunks != 1:
        raise ValueError(f"{path} holds something else")
    batch = table.to_batches()[0]
    kinds, dtypes = batch.column("kind").unique(), batch.column("dtype").unique().to_pylist()
    if len(kinds) != 1 or len(dtypes) != 1 or dtypes[0] not in DTYPES:
        raise ValueError(f"{path} mixes kinds or dtypes")
    values = batch.column("values")
    _, starts, data = values.buffers()
    numbers, shapes = _distinct(batch.column("shape"))
    return Shard(
        path,
        halves_of(batch.column("key").buffers()[1])[: len(batch)].copy(),
        np.frombuffer(starts, np.int64, count=len(batch)) + (data.address - content.address),
        numbers,
        [(DTYPES[dtypes[0]], shape) for shape in shapes],
    )


def _distinct(shapes: pa.ListArray) -> tuple[NDArray[np.int32], list[tuple[int, ...]]]:
    """The number (N,) of each shape among those that differ, and these.

    Taken as bytes: `np.unique` would compare field by field, and take most of a start's time.
    """
    sides = shapes.flatten().to_numpy().reshape(len(shapes), -1)
    width = sides[0].nbytes
    as_bytes = [None, pa.py_buffer(np.ascontiguousarray(sides))]
    found = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(sides), as_bytes)
    found = found.dictionary_encode()
    distinct = [np.frombuffer(shape, np.int32).tolist() for shape in found.dictionary.to_pylist()]
    return found.indices.to_numpy(), [*map(tuple, distinct)]


def halves_of(keys: bytes | pa.Buffer) -> NDArray[np.uint64]:
    """Keys, one after the other, as pairs of numbers (N, 2): these sort and compare fast."""
    return np.frombuffer(keys, np.uint64).reshape(-1, 2)


def read_values(
    paths: Sequence[Path], offsets: Sequence[int], buffers: Sequence[memoryview]
) -> None:
    """Fill each buffer from its place in a file.

    All are asked for before the first is waited for: a disk answers many at once, which makes
    batches at random places three times as fast where nothing is in the page cache.
    Raises `DataError` if they are not there any more.
    """
    descriptors: list[int] = []
    path = paths[0]
    try:
        for path, offset, buffer in zip(paths, offsets, buffers, strict=True):
            descriptors.append(os.open(path, os.O_RDONLY))
            if hasattr(os, "posix_fadvise"):  # not on macOS
                os.posix_fadvise(descriptors[-1], offset, len(buffer), os.POSIX_FADV_WILLNEED)
        for path, file, offset, buffer in zip(paths, descriptors, offsets, buffers, strict=True):
            if os.preadv(file, [buffer], offset) != len(buffer):
                raise DataError(f"{path} was cut off while in use: remove it and start again")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    finally:
        for file in descriptors:
            os.close(file)


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor; of a contiguous one not copied."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow stream, whole or not at all. Raises `StorageError`."""
    instead = "another latent_cache_dir; the files written before are whole"
    with whole(path, instead) as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
