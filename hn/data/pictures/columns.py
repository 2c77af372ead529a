"""The columns of a data set of pictures, a row for each of them.

    image, mask            undecoded: {"path", "bytes"}; no mask: null
    name                   unique in a run
    caption, other_captions, caption_source
    caption_prefix, caption_suffix    null: as the settings say
    repeats                how often it comes up in an epoch
    loss_weight            what its loss is multiplied with
    regularization         it shows what was known before: no template, no name

Arrow holds them. What is read of them is read in batches, so that a million rows are never a
million Python objects.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets import Image as ImageFeature
from datasets.table import InMemoryTable

from hn.data.words.folder_captions import Captioned

T = TypeVar("T")
ROWS = 1000  # read or written at once
_WORDS = Features(
    {
        "caption": Value("string"),
        "name": Value("string"),
        "other_captions": List(Value("string")),
        "caption_source": Value("string"),
        "mask": ImageFeature(decode=False),
    }
)
_COUNTS = Features(
    {
        "caption_prefix": Value("string"),
        "caption_suffix": Value("string"),
        "repeats": Value("int32"),
        "loss_weight": Value("float32"),
        "regularization": Value("bool"),
    }
)
Row = tuple[str, Captioned, str | None]  # name, what is written about it, path of its mask


def with_words(pictures: Dataset, rows: Iterable[Row]) -> Dataset:
    """The dataset of `image` with what is known of each picture beside it."""
    words = dataset_of(map(_words, _batches(rows)), _WORDS)
    return concatenate_datasets([pictures, words], axis=1)


def with_counts(
    dataset: Dataset,
    *,
    repeats: int = 1,
    loss_weight: float = 1.0,
    regularization: bool = False,
    caption_prefix: str | None = None,
    caption_suffix: str | None = None,
) -> Dataset:
    """The dataset with how its pictures count, all of them alike."""
    count = len(dataset)
    columns = {
        "caption_prefix": [caption_prefix] * count,
        "caption_suffix": [caption_suffix] * count,
        "repeats": np.full(count, repeats, np.int32),
        "loss_weight": np.full(count, loss_weight, np.float32),
        "regularization": np.full(count, regularization),
    }
    return concatenate_datasets([dataset, dataset_of([columns], _COUNTS)], axis=1)


def dataset_of(parts: Iterable[dict[str, Any]], features: Features) -> Dataset:
    """A dataset in memory of columns that come in parts, each turned into Arrow at once.

    Not by `Dataset.from_dict`, which looks at every value in Python: a minute for a million rows.
    """
    schema = features.arrow_schema
    tables = [pa.Table.from_pydict(part, schema) for part in parts]
    return Dataset(InMemoryTable(pa.concat_tables(tables)))


def batches(dataset: Dataset, columns: Sequence[str]) -> Iterator[list[tuple[Any, ...]]]:
    """Go through these columns in batches of rows, each a tuple in their order."""
    found: Any = dataset.select_columns(list(columns)).iter(ROWS)
    for batch in found:
        yield list(zip(*(batch[column] for column in columns), strict=True))


class Rows(Sequence[T]):
    """What is made of every row of some columns, when it is asked for.

    Read from Arrow itself: a row by way of `datasets` takes twenty times as long.
    """

    def __init__(
        self, dataset: Dataset, columns: Sequence[str], make: Callable[[tuple[Any, ...]], T]
    ) -> None:
        self._table: pa.Table = dataset.select_columns(list(columns)).with_format("arrow")[:]
        self._columns = [self._table.column(column) for column in columns]
        self._make = make

    def __len__(self) -> int:
        return self._table.num_rows

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return self._make(tuple(column[index].as_py() for column in self._columns))

    def __iter__(self) -> Iterator[T]:
        for batch in self._table.to_batches(max_chunksize=ROWS):
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            yield from map(self._make, rows)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, ROWS)):
        yield batch


def _words(rows: list[Row]) -> dict[str, list[Any]]:
    return {
        "caption": [written.captions[0] for _, written, _ in rows],
        "name": [name for name, _, _ in rows],
        "other_captions": [written.captions[1:] for _, written, _ in rows],
        "caption_source": [written.source for _, written, _ in rows],
        "mask": [None if mask is None else {"path": mask, "bytes": None} for _, _, mask in rows],
    }
