"""The pass over all pictures of a set: what a cache lacks is encoded, by one process or many.

Pictures are dealt to the processes in shards. A process surveys its shards (reads every file, but
decodes only what must be encoded), and leaves for each one a part of the index; the main process
joins these. Until then the processes wait for files, not for each other: collectives time out after
minutes, and a large set takes hours.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm

from hn.data.cache.encoding import Encoder
from hn.data.cache.index import Contents, Index
from hn.data.cache.shards import Shards, told
from hn.data.cache.store import Store
from hn.data.cache.tensor_files import write_table
from hn.data.cache.variants import Job
from hn.data.cache.workers import ALONE, Workers
from hn.data.pictures.decoding import survey
from hn.data.pictures.images import examples_of
from hn.data.tally import Tally
from hn.errors import DataError, DistributedError, StorageError, UserError, listed
from hn.storage import write_bytes

PER_SHARD = 256  # pictures; a killed run encodes at most so many of each process again
POLLED = 0.2  # seconds
TOLERANCE = 0.02  # fp16 and another device's arithmetic differ by less; another picture by 1
JOINED, FAILED = "index.arrow", "failed.json"
STALLED = 7200  # seconds without a new part, after which other processes are taken for lost


class Cache:
    """A folder of encoded pictures: `store` has the tensors, an index file says what they are.

    Of a cache to train from, `source`, everything is read, but nothing is written into it.
    """

    def __init__(self, folder: Path, source: Path | None = None) -> None:
        self.folder = folder
        self._source = source or folder

    @cached_property
    def store(self) -> Store:
        """The tensors; opening it looks through all files, seconds where there are millions."""
        sources = [] if self._source == self.folder else [self._source / "tensors"]
        return Store(self.folder / "tensors", *sources)

    def index_path(self, split: str) -> Path:
        """Where the index of training or of held-out pictures lies."""
        return self._source / "pictures" / f"{split}.arrow"

    def known(self, split: str) -> Contents:
        """The contents of pictures that were encoded before."""
        earlier = _earlier(self.index_path(split))
        return Contents() if earlier is None else earlier.contents


def cache_pictures(
    dataset: Dataset,
    encoder: Encoder,
    cache: Cache,
    split: str,
    workers: Workers = ALONE,
    tally: Tally | None = None,
) -> Index:
    """Encode what the cache lacks, with a progress bar, and return the index of all pictures.

    What was encoded, and why, is said and goes into the `tally`.
    Raises `DataError` listing pictures that cannot be used (all others are in the cache then),
    `NumericsError` naming one whose latents are not finite, `DistributedError` if another process
    does nothing any more; what one process raises, all of them raise.
    """
    folder = cache.folder / "pictures"
    parts = folder / workers.agree(f".{split}-{time.time_ns():x}")
    parts.mkdir(parents=True, exist_ok=True)
    _forget_killed(folder)
    with _telling_others(parts):
        index = _make_index(dataset, encoder, cache, split, workers, parts, tally or Tally())
    workers.wait()
    if workers.rank == 0:
        (parts / JOINED).replace(cache.index_path(split))
        shutil.rmtree(parts)
    cache.store.refresh()
    return index


def _make_index(
    dataset: Dataset,
    encoder: Encoder,
    cache: Cache,
    split: str,
    workers: Workers,
    parts: Path,
    tally: Tally,
) -> Index:
    """The shards of this process, then the index of all of them, which the main process joins."""
    starts, damaged = list(range(0, len(dataset), PER_SHARD)), cache.store.damaged
    earlier = _earlier(cache.index_path(split))
    with tqdm(
        total=sum(min(PER_SHARD, len(dataset) - start) for start in starts[:: workers.count]),
        desc="caching pictures",
        unit="picture",
        leave=False,
    ) as bar:
        shards = Shards(dataset, encoder, cache.store, earlier, bar)
        for start in starts[workers.rank :: workers.count]:
            table = shards.make(range(start, min(start + PER_SHARD, len(dataset))))
            write_table(parts / f"{start:09d}.arrow", table)
    joined = parts / JOINED
    if workers.rank == 0:
        tables = [_await(parts / f"{start:09d}.arrow", parts) for start in starts]
        _check(tables, len(dataset))
        about = {"settings": encoder.settings, "autoencoder": encoder.autoencoder}
        Index.write(joined, tables, {**about, "variants": encoder.variants})
        what = "latents" if split == "train" else "held-out latents"
        _say(tables, len(dataset), damaged, what, tally)
    _await(joined, parts)
    return Index.open(joined)  # stays mapped under its next name


@contextmanager
def _telling_others(parts: Path) -> Iterator[None]:
    """Leave word of what is raised here, so that no process waits for one that has ended."""
    try:
        yield
    except UserError as error:
        with suppress(StorageError):  # a full disk may be what is raised
            told = {"kind": type(error).__name__, "reason": str(error)}
            write_bytes(parts / FAILED, json.dumps(told).encode())
        raise


def _check(tables: list[pa.Table], count: int) -> None:
    """Raises `DataError` listing the pictures that cannot be used, whoever found them."""
    faults = [fault for part in map(told, tables) for fault in part.faults]
    if faults:
        found = f"{len(faults)} of {count} pictures cannot be used; mend or remove them"
        raise DataError(listed(found, faults))


def _earlier(path: Path) -> Index | None:
    """The index that is there already, to say what has changed since."""
    with suppress(DataError):
        return Index.open(path)
    return None


def _forget_killed(folder: Path) -> None:
    """Remove what passes left that were killed long ago."""
    for left in folder.glob(".*-*"):
        with suppress(OSError):  # another process may be quicker
            if time.time() - left.stat().st_mtime > STALLED:
                shutil.rmtree(left)


def _await(path: Path, parts: Path) -> pa.Table:
    """A file of another process, once it is there.

    Raises what that process raised, or `DistributedError` if it writes nothing any more.
    """
    while not path.exists():
        if (parts / FAILED).exists():
            failed = json.loads((parts / FAILED).read_bytes())
            kinds = {kind.__name__: kind for kind in UserError.__subclasses__()}
            raise kinds[failed["kind"]](failed["reason"])
        # the folder's time is that of the latest part
        if time.time() - parts.stat().st_mtime > STALLED:
            raise DistributedError(
                f"no process has written to {parts} for {STALLED // 60} minutes: one may have "
                "ended. Start again; what was encoded is kept."
            )
        time.sleep(POLLED)
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _say(tables: list[pa.Table], count: int, damaged: list[str], what: str, tally: Tally) -> None:
    """How many pictures were in the cache, and why the others were not."""
    parts = [*map(told, tables)]
    absent: dict[str, list[str]] = {}
    for part in parts:
        for reason, names in part.encoded.items():
            absent.setdefault(reason, []).extend(names)
    found = count - sum(map(len, absent.values()))
    print(f"{what}: {found} of {count} pictures were in the cache")
    for reason, names in absent.items():
        tally.add(what, reason, f"encoded, {reason}", names)
    tally.add(what, "damaged", "damaged, and encoded anew where needed", damaged)
    even, weighing = [name for part in parts for name in part.even], parts[0].weighing
    if weighing and even:
        kind = "alpha is constant or missing" if weighing == "alpha" else "mask is constant"
        tally.add(what, "even", f"weighted evenly, since their {kind}", even)


@dataclass(frozen=True)
class Verified:
    """What a second encoding of some pictures came to."""

    pictures: int
    entries: int
    worst: float  # largest difference, in units of the latents' standard deviation
    name: str  # of the picture with it

    def __str__(self) -> str:
        return (
            f"verified {self.pictures} pictures, {self.entries} entries: they differ by at most "
            f"{self.worst:.1e} standard deviations ({self.name or 'none'})"
        )

    @property
    def same(self) -> bool:
        """Whether the cache holds what would be encoded now, but for another device's rounding."""
        return self.worst <= TOLERANCE


def verify(dataset: Dataset, encoder: Encoder, index: Index, store: Store, count: int) -> Verified:
    """Encode `count` of the pictures again, evenly chosen, and compare."""
    rows = np.linspace(0, len(index) - 1, min(count, len(index))).round().astype(int).tolist()
    examples = examples_of(dataset.select(rows))
    worst, name, entries = 0.0, "", 0
    for row, example in tqdm(zip(rows, examples, strict=True), "verifying", len(rows), leave=False):
        again = Job(example, encoder.entries_of(survey(example)))
        moments = {key: it for done in encoder.encode([again]) for key, it in done.moments.items()}
        for key, kept in zip(index.entries(row), store.read(index.entries(row)), strict=True):
            mean, expected = (_latents(it) for it in (kept, moments[key]))
            difference = (mean - expected).abs().max() / mean.std()
            entries += 1
            if not difference <= worst:
                worst, name = float(difference), example.name
    return Verified(len(rows), entries, worst, name)


def _latents(entry: Tensor) -> Tensor:
    """The mean of moments (2, C, h, w), or what a canvas (1 + C, h, w) has of a picture."""
    return (entry[0] if entry.dim() == 4 else entry[1:]).float()
