"""One shard of a picture set: its part of the index, with everything it names in the store."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch import Tensor

from hn.data.ahead import ahead
from hn.data.decoding import Example, Survey, survey
from hn.data.encoding import Encoder, Job, Variant
from hn.data.images import examples_of, listed
from hn.data.index import SCHEMA, Index
from hn.data.store import Store
from hn.errors import DataError

_TOLD = b"told"


@dataclass(frozen=True)
class Row:
    """A picture: its place in the data set, and what the cache is to hold of it."""

    number: int
    found: Survey
    variants: list[Variant]
    weights: bytes | None  # key of its loss weights


@dataclass(frozen=True)
class Told:
    """What is to be said of a shard: names of pictures, those that were encoded by the reason."""

    encoded: dict[str, list[str]]
    even: list[str]  # whose places all count the same, though there are weights


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

        A picture that cannot be used is missing in it, and is named by `check`.
        """
        rows = list(self._rows(numbers))
        absent = self._encode(rows)
        self._weigh(rows)
        table = self._index(rows)
        names = dict(zip((row.number for row in rows), table["name"].to_pylist(), strict=True))
        reasons: dict[str, list[str]] = {}
        for row in rows:
            if row.number in absent:
                name = names[row.number]
                reasons.setdefault(self._reason(name, row.found), []).append(name)
        even = table.filter(pc.field("weights").is_null())["name"].to_pylist()
        told = Told(reasons, even if self._encoder.weighs else [])
        return table.replace_schema_metadata({_TOLD: json.dumps(asdict(told))})

    def check(self) -> None:
        """Raises `DataError` listing the pictures that cannot be used."""
        if self._faults:
            found = f"{len(self._faults)} pictures cannot be used; mend or remove them"
            raise DataError(listed(found, self._faults))

    def _rows(self, numbers: range) -> Iterator[Row]:
        surveys = ahead(_surveyed, self._examples(numbers))
        for number, found in zip(numbers, surveys, strict=True):
            if isinstance(found, DataError):
                self._faults.append(str(found))
            else:
                variants = self._encoder.variants_of(found)
                yield Row(number, found, variants, self._encoder.weights_key(found))

    def _encode(self, rows: list[Row]) -> set[int]:
        """Encode what is missing into the store; return the numbers of the pictures concerned."""
        owners: dict[bytes, tuple[int, Variant]] = {}
        for row in rows:
            for variant in row.variants:  # two pictures may be the same
                owners.setdefault(variant.key, (row.number, variant))
        keys = list(owners)
        wanted: dict[int, list[Variant]] = {}
        for place in self._store.missing(keys):
            number, variant = owners[keys[place]]
            wanted.setdefault(number, []).append(variant)
        self._bar.update(len(rows) - len(wanted))
        jobs = map(Job, self._examples(list(wanted)), wanted.values())
        done: dict[bytes, Tensor] = {}
        for encoded in self._encoder.encode(jobs):
            done |= encoded.moments
            self._faults += [] if encoded.fault is None else [encoded.fault]
            self._bar.update(encoded.read)
        self._write("moments", {key: done[key] for key in keys if key in done})
        return set(wanted)

    def _weigh(self, rows: list[Row]) -> None:
        """Put loss weights that are missing into the store."""
        keyed = {row.weights: row for row in rows if row.weights is not None}
        keys = list(keyed)
        wanted = {keyed[keys[place]].number: keys[place] for place in self._store.missing(keys)}
        surveys = {row.number: row.found for row in rows}
        pairs = zip(
            self._examples(list(wanted)), (surveys[number] for number in wanted), strict=True
        )
        done: dict[bytes, Tensor] = {}
        for key, made in zip(
            wanted.values(), ahead(lambda pair: self._encoder.weights(*pair), pairs), strict=True
        ):
            if isinstance(made, DataError):
                self._faults.append(str(made))
            else:
                done[key] = made
        self._write("weights", done)

    def _write(self, kind: str, tensors: dict[bytes, Tensor]) -> None:
        if tensors:
            self._store.write(kind, list(tensors), list(tensors.values()))

    def _index(self, rows: list[Row]) -> pa.Table:
        """The rows as they stand in the index."""
        words: Any = self._dataset.select([row.number for row in rows])
        words = words.remove_columns("image").to_dict()
        captions = zip(words["caption"], words["other_captions"], strict=True)
        sizes = [self._encoder.size_for(row.found) for row in rows]
        columns = {
            "name": words["name"],
            "captions": [[first, *others] for first, others in captions],
            "source": words["caption_source"],
            "content": [row.found.content for row in rows],
            "mask": [None for _ in rows],
            "width": [row.found.size[0] for row in rows],
            "height": [row.found.size[1] for row in rows],
            "size": sizes,
            "keys": [[it.key for it in row.variants] for row in rows],
            "weights": [self._uneven(row.weights) for row in rows],
            "repeats": [1] * len(rows),
            "loss_weight": [1.0] * len(rows),
            "regularization": [False] * len(rows),
        }
        return pa.table(columns, SCHEMA)

    def _uneven(self, key: bytes | None) -> bytes | None:
        """The key of loss weights, unless they are all ones."""
        if key is None or self._store.missing([key]):
            return None
        return None if bool((self._store.read([key])[0] == 1).all()) else key

    def _reason(self, name: str, found: Survey) -> str:
        """Why a picture had to be encoded."""
        if self._earlier is None:
            return "not there yet"
        about, settings = self._earlier.about, self._encoder.settings
        if about.autoencoder != self._encoder.autoencoder:
            return "another autoencoder"
        changed = [name for name in settings if about.settings.get(name) != settings[name]]
        if changed:
            return f"another {', '.join(changed)}"
        row = pc.index(self._earlier.table["name"], name).as_py()
        if row < 0:
            return "new"
        same = self._earlier.table["content"][row].as_py() == found.content
        return "lost from the cache" if same else "changed"

    def _examples(self, numbers: Sequence[int]) -> Iterator[Example]:
        return examples_of(self._dataset.select(numbers))


def told(part: pa.Table) -> Told:
    """What is to be said of a part of an index."""
    return Told(**json.loads(part.schema.metadata[_TOLD]))


def _surveyed(example: Example) -> Survey | DataError:
    try:
        return survey(example)
    except DataError as error:
        return error
