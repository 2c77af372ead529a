"""From chunks of a stream to decoded micro-batches, each of pictures of one size.

All of it follows from the chunk and the seed, so where a process is, is where its chunk began and
how many micro-batches of it are gone.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass, field
from itertools import count, cycle
from typing import Any, Self

from hn import rng
from hn.data.batches import Layout
from hn.data.streaming.prefetch import ahead
from hn.data.streaming.samples import Sample, Samples
from hn.data.streaming.stream import Chunk, Position, Size, Stream, check_faults
from hn.data.words.prompts import Prompts
from hn.errors import DataError

THREADS = 4  # that decode; Pillow lets them run side by side
NAMED = 5  # rows of each process that are named when they are skipped


@dataclass(frozen=True)
class Counts:
    """What became of the rows of a stream so far."""

    read: int = 0
    skipped: int = 0  # since they cannot be used
    repeated: int = 0  # to fill the micro-batches of a size
    enlarged: int = 0  # since smaller than trained on

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Progress:
    """How far a process is: so many micro-batches of the chunk that begins there are gone."""

    chunk: Position = field(default_factory=Position)
    batches: int = 0
    before: Counts = field(default_factory=Counts)  # that chunk
    counts: Counts = field(default_factory=Counts)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        """The inverse of `asdict`."""
        return cls(
            Position(**state["chunk"]),
            state["batches"],
            Counts(**state["before"]),
            Counts(**state["counts"]),
        )


@dataclass(frozen=True)
class Planned:
    """A micro-batch by places in its chunk; `spares` are all of its size, its own ones last."""

    size: Size
    own: list[int]
    spares: list[int]


@dataclass(frozen=True)
class Ready:
    """A micro-batch that is decoded; `progress` is how far one is after it."""

    step: int
    slots: list[int]
    samples: list[Sample]
    prompts: list[str]
    progress: Progress


def plan(sizes: Sequence[Size], batch_size: int, seed: int, *position: int) -> list[Planned]:
    """Pictures of these sizes as micro-batches of one size each, in the order of this position.

    Each picture is in one of them. The last one of a size may be too small.
    """
    groups: dict[Size, list[int]] = {}
    for place in rng.numpy_random(seed, "chunk", *position, 0).permutation(len(sizes)).tolist():
        groups.setdefault(sizes[place], []).append(place)
    batches = [
        Planned(size, group[start:end], group[end:] + group[:end])
        for size, group in groups.items()
        for start in range(0, len(group), batch_size)
        for end in [start + batch_size]
    ]
    order = rng.numpy_random(seed, "chunk", *position, 1).permutation(len(batches)).tolist()
    return [batches[place] for place in order]


class Decoder:
    """Makes micro-batches of a stream; skips, counts and names what cannot be decoded."""

    def __init__(
        self, stream: Stream, samples: Samples, prompts: Prompts, layout: Layout, seed: int
    ) -> None:
        self.layout = layout
        self._stream = stream
        self._samples = samples
        self._prompts = prompts
        self._seed = seed

    def batches(self, step: int, progress: Progress) -> Generator[Ready, None, None]:
        """The micro-batches from `step` on, going on after `progress`, endlessly.

        Raises `DataError` where the stream cannot be read or too much of it cannot be used.
        """
        size = self.layout.batch_size
        length = max(1, self._stream.config.shuffle_buffer // size) * size  # of whole batches
        slots = self._slots(step)
        here = next(slots)
        chunks = ahead(self._stream.chunks(progress.chunk, length), 1)
        with closing(chunks), ThreadPoolExecutor(THREADS) as pool:
            for chunk in chunks:
                targets = [self._samples.framing.size_for(each) for each in chunk.sizes]
                tally = _Tally(chunk, targets, progress)
                position = self._stream.rank, chunk.start.epoch, chunk.start.chunk
                planned = plan(targets, size, self._seed, *position)
                for number in range(tally.batches, len(planned)):
                    drawn = self._drawn(pool, chunk, planned[number], tally, *here)
                    if drawn:
                        samples, prompts = map(list, zip(*drawn, strict=True))
                        yield Ready(*here, samples, prompts, tally.after(number + 1))
                        here = next(slots)
                progress = tally.after(len(planned))

    def _drawn(
        self,
        pool: Executor,
        chunk: Chunk,
        batch: Planned,
        tally: "_Tally",
        step: int,
        slots: list[int],
    ) -> list[tuple[Sample, str]]:
        """Sample and prompt for each slot; nothing if nothing of its size can be decoded.

        What cannot be decoded, or is not there, is replaced by spares: the same ones wherever a run
        is resumed.
        """

        def draw(member: int, slot: int) -> tuple[Sample, str] | DataError:
            example = chunk.examples[member]
            try:
                sample = self._samples.draw(example, batch.size, step, slot)
            except DataError as error:
                return error
            return sample, self._prompts.draw_of(example.captions, step, slot)

        drawn: dict[int, tuple[Sample, str]] = {}
        for slot, result in zip(slots, pool.map(draw, batch.own, slots), strict=False):
            if isinstance(result, DataError):
                tally.fault(str(result))
            else:
                drawn[slot] = result
        spares, failed = cycle(batch.spares), 0
        for slot in slots:
            while slot not in drawn and failed < len(batch.spares):
                result = draw(next(spares), slot)
                if isinstance(result, DataError):
                    failed += 1
                else:
                    drawn[slot], failed = result, 0
                    tally.repeat()
        return [drawn[slot] for slot in slots] if len(drawn) == len(slots) else []

    def _slots(self, step: int) -> Iterator[tuple[int, list[int]]]:
        """Step and slots of every micro-batch from `step` on."""
        for current in count(step):
            for micro_batch in range(self.layout.accumulation):
                yield current, self.layout.slots(micro_batch)


class _Tally:
    """Counts what becomes of a chunk's rows; of one that is gone on with, of the rest.

    Raises `DataError` where too much cannot be used.
    """

    def __init__(self, chunk: Chunk, targets: list[Size], progress: Progress) -> None:
        self._chunk = chunk
        self._faults: list[str] = []
        if progress.chunk == chunk.start and progress.batches:
            self.batches = progress.batches
            self._before, self._counts = progress.before, progress.counts
            return
        self.batches = 0
        pairs = zip(chunk.sizes, targets, strict=True)
        enlarged = sum(own[0] < size[0] or own[1] < size[1] for own, size in pairs)
        self._before = progress.counts
        self._counts = self._before + Counts(read=chunk.rows, enlarged=enlarged)
        for fault in chunk.faults:
            self.fault(fault)

    def after(self, batches: int) -> Progress:
        """How far one is after so many micro-batches."""
        return Progress(self._chunk.start, batches, self._before, self._counts)

    def repeat(self) -> None:
        """Count a picture that fills a micro-batch."""
        self._counts += Counts(repeated=1)

    def fault(self, text: str) -> None:
        """Count a row that cannot be used; name the first ones of a run."""
        if self._counts.skipped < NAMED:
            print(f"skipped: {text}")
        self._counts += Counts(skipped=1)
        self._faults.append(text)
        of_chunk = self._counts.skipped - self._before.skipped
        check_faults(of_chunk, self._chunk.rows, self._faults)
        check_faults(self._counts.skipped, self._counts.read, self._faults)
