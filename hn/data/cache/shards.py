"""One shard of a picture set: its part of the index, with everything it names in the store."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch import Tensor

from hn.data.cache.encoding import Encoder
from hn.data.cache.index import SCHEMA, Index
from hn.data.cache.store import Store
from hn.data.cache.variants import Job, Variant
from hn.data.parallel import in_order, thread_count
from hn.data.pictures.decoding import Example, Survey, survey
from hn.data.pictures.images import examples_of
from hn.errors import DataError

_TOLD = b"told"
_KEPT = [
    *("name", "caption", "other_captions", "caption_source", "caption_prefix", "caption_suffix"),
    *("repeats", "loss_weight", "regularization"),
]


@dataclass(frozen=True)
class Row:
    """A picture: its place in the data set, and what the cache is to hold of it."""

    number: int
    name: str
    found: Survey
    variants: list[Variant]  # then, of an inpainting model, their canvases
    weights: bytes | None  # key of its loss weights


@dataclass(frozen=True)
class Told:
    """What is to be said of a shard: names of pictures, those that were encoded by the reason."""

    encoded: dict[str, list[str]]
    weighing: str | None
    even: list[str]  # whose places all count the same
    faults: list[str]  # of pictures that cannot be used


class Shards:
    """Makes shards of a data set; `earlier` is the index of the last time, to say what changed.

    `bar` counts pictures.
    """

    def __init__(
        self, dataset: Dataset, encoder: Encoder, store: Store, earlier: Index | None, bar: Any
    ) -> None:
        self._dataset = dataset
        self._encoder = encoder
        self._store = store
        self._earlier = earlier
        self._bar = bar
        self._faults: list[str] = []

    def make(self, numbers: range) -> pa.Table:
        """Encode what the store lacks of these pictures, and return their part of the index.

        A picture that cannot be used is missing in it, and is told of.
        """
        self._faults = []
        rows = list(self._rows(numbers))
        absent = self._encode(rows)
        self._weigh(rows)
        table = self._index(rows)
        reasons: dict[str, list[str]] = {}
        for row in rows:
            if row.number in absent:
                reasons.setdefault(self._reason(row), []).append(row.name)
        told = Told(reasons, self._encoder.weighing, self._even(table), self._faults)
        return table.replace_schema_metadata({_TOLD: json.dumps(asdict(told))})

    def _rows(self, numbers: range) -> Iterator[Row]:
        surveys = in_order(_surveyed, self._examples(numbers), thread_count())
        for number, (name, found) in zip(numbers, surveys, strict=True):
            if isinstance(found, DataError):
                self._faults.append(str(found))
            else:
                variants = self._encoder.entries_of(found)
                yield Row(number, name, found, variants, self._encoder.weights_key(found))

    def _encode(self, rows: list[Row]) -> set[int]:
        """Encode what is missing into the store; return the numbers of the pictures concerned,
        of two that are the same both.
        """
        owners: dict[bytes, tuple[int, Variant]] = {}
        for row in rows:
            for variant in row.variants:  # two pictures may be the same
                owners.setdefault(variant.key, (row.number, variant))
        keys = list(owners)
        absent = {keys[place] for place in self._store.missing(keys)}
        wanted: dict[int, list[Variant]] = {}
        for number, variant in (owners[key] for key in keys if key in absent):
            wanted.setdefault(number, []).append(variant)
        self._bar.update(len(rows) - len(wanted))
        jobs = map(Job, self._examples(list(wanted)), wanted.values())
        done: dict[bytes, Tensor] = {}
        for encoded in self._encoder.encode(jobs):
            done |= encoded.moments
            self._faults += [] if encoded.fault is None else [encoded.fault]
            self._bar.update(encoded.read)
        for kind, is_canvas in (("moments", False), ("canvas", True)):
            of_kind = [key for key in keys if (owners[key][1].hole is not None) == is_canvas]
            self._write(kind, {key: done[key] for key in of_kind if key in done})
        return {row.number for row in rows if any(it.key in absent for it in row.variants)}

    def _weigh(self, rows: list[Row]) -> None:
        """Put loss weights that are missing into the store."""
        sharing: dict[bytes, list[Row]] = {}  # what looks the same weighs the same
        for row in rows:
            if row.weights is not None:
                sharing.setdefault(row.weights, []).append(row)
        keys = list(sharing)
        wanted = [keys[place] for place in self._store.missing(keys)]
        first = [sharing[key][0] for key in wanted]
        examples = self._examples([row.number for row in first])
        pairs = zip(examples, (row.found for row in first), strict=True)
        made = in_order(lambda pair: self._encoder.weights(*pair), pairs, thread_count())
        done: dict[bytes, Tensor] = {}
        for key, weights in zip(wanted, made, strict=True):
            if isinstance(weights, str):
                self._faults += [f"{row.name}: {weights}" for row in sharing[key]]
            else:
                done[key] = weights
        self._write("weights", done)

    def _write(self, kind: str, tensors: dict[bytes, Tensor]) -> None:
        if tensors:
            self._store.write(kind, list(tensors), list(tensors.values()))

    def _index(self, rows: list[Row]) -> pa.Table:
        """The rows as they stand in the index."""
        words: Any = self._dataset.select([row.number for row in rows])
        words = words.select_columns(_KEPT).to_dict()
        sizes = [self._encoder.size_for(row.found) for row in rows]
        columns = {
            **{name: words[name] for name in _KEPT},
            "content": [row.found.content for row in rows],
            "mask": [row.found.mask for row in rows],
            "width": [row.found.size[0] for row in rows],
            "height": [row.found.size[1] for row in rows],
            "size": sizes,
            "keys": [[it.key for it in row.variants] for row in rows],
            "corners": [
                [it.frame.seen_corner(it.mirrored) for it in row.variants if it.hole is None]
                for row in rows
            ],
            "weights": [self._uneven(row.weights) for row in rows],
        }
        return pa.table(columns, SCHEMA)

    def _uneven(self, key: bytes | None) -> bytes | None:
        """The key of loss weights, unless they are all ones."""
        if key is None or self._store.missing([key]):
            return None
        return None if bool((self._store.read([key])[0] == 1).all()) else key

    def _even(self, table: pa.Table) -> list[str]:
        """The names of pictures whose alpha or mask makes no difference."""
        even = pc.field("weights").is_null()
        if self._encoder.weighing == "mask":
            even &= pc.field("mask").is_valid()
        return table.filter(even)["name"].to_pylist()

    def _reason(self, row: Row) -> str:
        """Why a picture had to be encoded."""
        if self._earlier is None:
            return "not there yet"
        about, settings = self._earlier.about, self._encoder.settings
        if about.autoencoder != self._encoder.autoencoder:
            return "another autoencoder"
        changed = [name for name in settings if about.settings.get(name) != settings[name]]
        if changed:
            return f"another {', '.join(changed)}"
        place = pc.index(self._earlier.table["name"], row.name).as_py()
        if place < 0:
            return "new"
        same = self._earlier.table["content"][place].as_py() == row.found.content
        return "lost from the cache" if same else "changed"

    def _examples(self, numbers: Sequence[int]) -> Iterator[Example]:
        return examples_of(self._dataset.select(numbers))


def told(part: pa.Table) -> Told:
    """What is to be said of a part of an index."""
    return Told(**json.loads(part.schema.metadata[_TOLD]))


def _surveyed(example: Example) -> tuple[str, Survey | DataError]:
    try:
        return example.name, survey(example)
    except DataError as error:
        return example.name, error
