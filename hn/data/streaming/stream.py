"""An HF dataset as an endless stream of chunks: read from where it lies, neither downloaded nor
held.

A process goes through its part of the dataset epoch by epoch, the shards (data files) of each in a
new order. If the shards can be dealt out evenly each process takes whole ones, else one row in so
many of all of them. Where a chunk begins is four numbers; to go on from there means to read one
shard up to that row. What `datasets` notes for that (`state_dict`) reads the same, and its form
differs between releases.
"""

import hashlib
import json
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from hn import rng
from hn.config import DataConfig
from hn.data.pictures.checks import check_size
from hn.data.pictures.decoding import Example, upright_size
from hn.data.pictures.hub_datasets import load
from hn.data.streaming.rows import to_example, with_columns
from hn.errors import DataError, listed

FIRST = 32  # rows that are looked at before training
TOLERATED = 10  # rows that cannot be used, whatever their share
TOLERATED_SHARE = 0.1

Size = tuple[int, int]


@dataclass(frozen=True)
class Position:
    """Where in the stream a chunk begins; what a process needs to go on from there."""

    epoch: int = 0
    chunk: int = 0  # of the epoch
    shard: int = 0  # in the epoch's order
    row: int = 0  # of this process in that shard


@dataclass(frozen=True)
class Chunk:
    """Pictures that were read together, as files, and what is wrong with the other rows."""

    start: Position
    examples: list[Example]
    sizes: list[Size]  # of the pictures, as they are seen
    faults: list[str]

    @property
    def rows(self) -> int:
        """How many rows were read."""
        return len(self.examples) + len(self.faults)


class Stream:
    """The part of a dataset that one process reads, endlessly.

    `digest` and `first_captions` come of the first rows. Raises `DataError` for columns that are
    missing or hold something else, and for no rows.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        config: DataConfig,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.config = config
        self.rank = rank
        self._seed = seed
        self._world_size = world_size
        self._dataset = with_columns(dataset, config)
        self.shards = dataset.num_shards
        self._whole_shards = self.shards % world_size == 0
        first = self._read_first()
        self.digest = _digest(self.shards, str(dataset.features), first[0], config)
        self.first_captions = _usable_captions(first, config)

    @classmethod
    def of(cls, config: DataConfig, seed: int, *, rank: int = 0, world_size: int = 1) -> "Stream":
        """Of the dataset that the settings name."""
        dataset = load(config)
        assert isinstance(dataset, IterableDataset)
        return cls(dataset, config, seed, rank=rank, world_size=world_size)

    @property
    def summary(self) -> str:
        """What is read, in a line."""
        part = "whole" if self._whole_shards else f"1 row of {self._world_size}"
        dealt = f", each process {part}" if self._world_size > 1 else ""
        return f"streaming {self.config.dataset_name}: {self.shards} shards{dealt}"

    def chunks(self, start: Position, length: int) -> Generator[Chunk, None, None]:
        """Chunks of `length` usable pictures from `start` on; the last of an epoch is shorter.

        Raises `DataError` for a shard that cannot be read, and where too much cannot be used.
        """
        epoch, found = _Epoch(self, start), start != Position()
        while True:
            chunk = epoch.chunk(length)
            found = found or chunk.rows > 0
            if epoch.ended:
                if not found:
                    raise DataError(f"{self.config.dataset_name} has no row for each process")
                epoch = _Epoch(self, Position(epoch.number + 1))
            yield chunk

    def order(self, epoch: int) -> list[int]:
        """The shards of an epoch that this process reads, one after the other."""
        shards = rng.numpy_random(self._seed, "shards", epoch).permutation(self.shards).tolist()
        return shards[self.rank :: self._world_size] if self._whole_shards else shards

    def shard(self, number: int) -> IterableDataset:
        """What this process reads of a shard."""
        dataset = self._dataset.shard(self.shards, number)
        if self._whole_shards:
            return dataset
        return split_dataset_by_node(dataset, self.rank, self._world_size)

    def place(self, shard: int, row: int) -> str:
        """Where a row of this process is found."""
        row = row if self._whole_shards else self.rank + row * self._world_size
        return f"row {row} of shard {shard}"

    def _read_first(self) -> list[dict[str, Any]]:
        config = self.config
        try:
            first = list(islice(self._dataset, FIRST))
        except Exception as error:  # pyarrow and datasets raise a dozen kinds of their own
            raise DataError(
                f"the first rows of {config.dataset_name} cannot be read: {str(error).strip()}"
            ) from error
        if not first:
            raise DataError(f"dataset_name '{config.dataset_name}' holds no row")
        return first


class _Epoch:
    """What is left of an epoch from a position on."""

    def __init__(self, stream: Stream, start: Position) -> None:
        self._stream = stream
        self._start = start
        self._chunk, self._shard, self._row = start.chunk, start.shard, start.row
        self._rows = self._read()
        self.ended = False

    @property
    def number(self) -> int:
        return self._start.epoch

    def chunk(self, length: int) -> Chunk:
        """The next one. Raises `DataError` where too many rows cannot be used."""
        here = Position(self.number, self._chunk, self._shard, self._row)
        chunk = Chunk(here, [], [], [])
        self._chunk += 1
        while len(chunk.examples) < length:
            row = next(self._rows, None)
            if row is None:
                self.ended = True
                break
            try:
                example = to_example(*row, self._stream.config)
                size = upright_size(example)
                check_size(example.name, size, self._stream.config.min_side)
                chunk.sizes.append(size)
                chunk.examples.append(example)
            except (DataError, ValueError) as error:
                chunk.faults.append(str(error))
                check_faults(len(chunk.faults), length, chunk.faults)
        return chunk

    def _read(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Rows, each with its place."""
        for place, shard in enumerate(self._stream.order(self.number)):
            if place < self._start.shard:
                continue
            gone = self._start.row if place == self._start.shard else 0
            self._shard, self._row = place, gone
            for row in islice(self._reading(shard), gone, None):
                self._row += 1
                yield self._stream.place(shard, self._row - 1), row

    def _reading(self, shard: int) -> Iterator[dict[str, Any]]:
        try:
            yield from self._stream.shard(shard)
        except Exception as error:  # network, disk, damage: a dozen libraries' own kinds
            raise DataError(
                f"{self._stream.config.dataset_name} cannot be read on at "
                f"{self._stream.place(shard, self._row)}: {str(error).strip()} If that passes, "
                "resume from the last checkpoint."
            ) from error


def check_faults(number: int, rows: int, faults: list[str]) -> None:
    """Raises `DataError` with the last faults if more than a tenth of the rows cannot be used, and
    more than a few.

    A bad row must not end a long run; a dataset or a setting that is wrong must.
    """
    if number > max(TOLERATED, TOLERATED_SHARE * rows):
        raise DataError(
            listed(
                f"{number} of {rows} streamed rows cannot be used, more than a tenth; choose other "
                "columns or another dataset, or mend it",
                faults,
            )
        )


def _digest(shards: int, features: str, first: dict[str, Any], config: DataConfig) -> str:
    """What tells datasets apart without reading them: shards, columns, the first picture."""
    description = json.dumps([shards, features, first[config.caption_column]])
    content = (first[config.image_column] or {}).get("bytes") or b""
    return hashlib.sha256(description.encode() + content).hexdigest()


def _usable_captions(rows: list[dict[str, Any]], config: DataConfig) -> list[tuple[str, ...]]:
    """The captions of each row that can be used."""
    found = []
    for row in rows:
        with suppress(ValueError):
            found.append(to_example("", row, config).captions)
    return found
