"""The pictures of a cache, one row each: what is written about them, and the keys of their latents.

    <cache>/tensors/*.arrow         what was encoded (`hn.data.cache.store`)
    <cache>/pictures/train.arrow    the index; validation.arrow for held-out pictures

An index and a store are all that training reads, so a cache can be moved or published without the
pictures. The settings that shaped it stand in the schema's metadata, under `hn`, as JSON. The file
is mapped: what is not looked at is not in memory, and what was looked at is let go of again.
"""

import hashlib
import json
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable
from numpy.typing import NDArray

from hn.data.cache.store import Store
from hn.data.cache.tensor_files import KEY_BYTES, write_table
from hn.diffusion.conditions.views import View
from hn.errors import DataError

FORMAT = 1
ROWS_AT_ONCE = 10_000
_ABOUT = b"hn"
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("caption", pa.string()),
        ("other_captions", pa.list_(pa.string())),
        ("caption_source", pa.string()),
        ("caption_prefix", pa.string()),  # null: as the settings say
        ("caption_suffix", pa.string()),
        ("content", pa.binary(32)),  # SHA-256 of the picture's file
        ("mask", pa.binary(32)),  # and of its mask's, if it has one
        ("width", pa.int32()),  # of the picture, upright
        ("height", pa.int32()),
        ("size", pa.list_(pa.int32(), 2)),  # width and height of what is trained on
        # of the moments (2, C, h, w) of each variant, then of their canvases (1 + C, h, w), if any
        ("keys", pa.list_(pa.binary(KEY_BYTES))),
        ("corners", pa.list_(pa.list_(pa.int32(), 2))),  # left and top of what each variant shows
        ("weights", pa.binary(KEY_BYTES)),  # of the loss weights (crops, 1, h, w); null: all ones
        ("repeats", pa.int32()),
        ("loss_weight", pa.float32()),
        ("regularization", pa.bool_()),
    ]
)
# What was written before Stable Diffusion XL was trained for is read, too.
_EARLIER = SCHEMA.remove(SCHEMA.get_field_index("corners"))
IDENTITY = [
    *("name", "caption", "other_captions", "caption_prefix", "caption_suffix"),
    *("content", "mask", "repeats", "loss_weight", "regularization"),
]


@dataclass(frozen=True)
class About:
    """What holds for all pictures of an index.

    `settings`: those that shape latents, by name, as JSON values. `digest`: of what the pictures
    are, whatever was made of them. `variants`: of each picture, crops and their mirror images.
    """

    settings: dict[str, Any]
    autoencoder: str
    digest: str
    variants: int


class Index:
    """The rows of an index file, `mapped`."""

    def __init__(self, table: pa.Table, about: About, mapped: mmap.mmap) -> None:
        self.table = table
        self.about = about
        self._mapped = mapped
        self._keys, self._weights = table.column("keys"), table.column("weights")

    def __len__(self) -> int:
        return self.table.num_rows

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map an index file. Raises `DataError` for anything else."""
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            table = pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
            found = json.loads((table.schema.metadata or {})[_ABOUT])
            known = table.schema.equals(SCHEMA) or table.schema.equals(_EARLIER)
            if found.pop("format") != FORMAT or not known:
                raise ValueError("it was written by another version")
            return cls(table.combine_chunks(), About(**found), mapped)
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{path} is no index of cached pictures ({error}). Make it with "
                "tools/cache_latents.py."
            ) from error

    @classmethod
    def write(cls, path: Path, parts: Iterable[pa.Table], about: dict[str, Any]) -> None:
        """Join parts of an index to one file, whole or not at all. Raises `StorageError`."""
        table = pa.concat_tables(parts).combine_chunks()
        about = {"format": FORMAT, "digest": digest_of(table), **about}
        write_table(path, table.replace_schema_metadata({_ABOUT: json.dumps(about)}))

    @cached_property
    def words(self) -> Dataset:
        """What is written about the pictures."""
        table = InMemoryTable(self.table.replace_schema_metadata(None))
        # Without one, `datasets` would read and hash all of the table.
        return Dataset(table, fingerprint=self.about.digest)

    @cached_property
    def sizes(self) -> NDArray[np.int32]:
        """Width and height (N, 2) of what is trained on."""
        flat = self.table.column("size").combine_chunks().flatten()
        return flat.to_numpy().reshape(-1, 2)

    def numbers(self, column: str) -> NDArray[Any]:
        """A column of numbers (N,)."""
        return self.table.column(column).to_numpy()

    def keys(self, picture: int) -> list[bytes]:
        """The keys of a picture's variants: the crops, then their mirror images."""
        return self.entries(picture)[: self.about.variants]

    def entries(self, picture: int) -> list[bytes]:
        """The keys of all that is encoded of a picture but its loss weights."""
        return self._keys[picture].as_py()

    def canvases(self, picture: int, variant: int) -> list[bytes]:
        """The keys of what an inpainting model reads beside a variant, one for each hole."""
        keys, variants = self.entries(picture), self.about.variants
        each = len(keys) // variants - 1
        start = variants + variant * each
        return keys[start : start + each]

    def view(self, picture: int, variant: int) -> View:
        """What a variant shows of its picture; of an index that `has_corners`."""
        row = self.table.slice(picture, 1).select(["width", "height", "size", "corners"])
        width, height, size, corners = (column[0].as_py() for column in row.columns)
        return View((width, height), tuple(corners[variant]), tuple(size))

    @property
    def has_corners(self) -> bool:
        """Whether it says what is seen of the pictures, as those written earlier do not."""
        return "corners" in self.table.column_names

    def weights(self, picture: int) -> bytes | None:
        """The key of a picture's loss weights; None where they are all ones."""
        return self._weights[picture].as_py()

    def let_go(self) -> None:
        """Let go of the pages that were looked at, which would count as this process's memory.

        The system keeps them: looking again reads no disk.
        """
        self._mapped.madvise(mmap.MADV_DONTNEED)

    @property
    def contents(self) -> "Contents":
        """The contents of all its pictures, which were decoded to make it."""
        return Contents(self.table.column("content").combine_chunks().to_numpy(False))

    def check(self, store: Store, autoencoder: str, *, corners: bool = False) -> None:
        """Raises `DataError` if the store lacks entries, if another autoencoder made them, or if
        `corners` are needed, and missing.
        """
        if corners and not self.has_corners:
            raise DataError(
                f"the index of {store.folder} was written before Stable Diffusion XL was trained "
                "for: it does not say what of each picture is seen. Make it anew with "
                "tools/cache_latents.py, which encodes nothing again."
            )
        if self.about.autoencoder != autoencoder:
            raise DataError(
                f"the latents in {store.folder} are not those of this base model's autoencoder: "
                "make a cache with the base model that is trained on"
            )
        named = missing = 0
        for batch in self.table.to_batches(max_chunksize=ROWS_AT_ONCE):
            for keys in (batch["keys"].flatten(), batch["weights"].drop_null()):
                named += len(keys)
                missing += store.lacks(_joined(keys)) if len(keys) else 0
            self.let_go()
        if missing:
            raise DataError(
                f"{store.folder} lacks {missing} of {named} entries that its index names: "
                "copy it again, or run tools/cache_latents.py again, which makes them anew"
            )


def _joined(keys: pa.FixedSizeBinaryArray) -> pa.Buffer:
    """Keys, one after the other."""
    return keys.buffers()[1].slice(keys.offset * KEY_BYTES, len(keys) * KEY_BYTES)


class Contents:
    """A set of SHA-256 digests, 32 bytes for each."""

    def __init__(self, digests: Sequence[bytes] = ()) -> None:
        self._sorted = np.unique(np.frombuffer(b"".join(digests), "S32"))

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, digest: bytes) -> bool:
        wanted = np.frombuffer(digest, "S32")
        place = int(np.searchsorted(self._sorted, wanted)[0])
        return place < len(self) and bool(self._sorted[place] == wanted[0])


def digest_of(table: pa.Table) -> str:
    """A hash of what the pictures are: the same for the same rows, however they are chunked."""
    digest = hashlib.sha256()
    for row in table.select(IDENTITY).to_batches(max_chunksize=ROWS_AT_ONCE):
        for values in row.to_pylist():
            digest.update(repr(tuple(values.values())).encode())
    return digest.hexdigest()
