"""Which pictures make up which micro-batch: a pure function of the seed and the batch's number.

All pictures of a micro-batch have one size, so each size (bucket) is a stream of its own: endless,
in a new order each time round, cut into batches across the rounds. An epoch is one round of all
pictures; a bucket gets as many batches in it as its share asks for, carried over exactly, in a
random order. So at any time the pictures of a bucket were seen equally often but for one, and
at an epoch's end no bucket is ahead or behind by more than half a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hn import rng


@dataclass(frozen=True)
class Bucket:
    """The pictures of one size (width, height); one that is repeated stands here repeatedly."""

    size: tuple[int, int]
    pictures: NDArray[np.int32]


@dataclass(frozen=True)
class Plan:
    """The batches of an epoch from the `first` on, counted over all of them: of each the bucket,
    and how many that bucket had before it.
    """

    first: int
    buckets: NDArray[np.int64]
    earlier: NDArray[np.int64]


class Order:
    """Draws micro-batches of `batch_size` pictures."""

    def __init__(self, buckets: Sequence[Bucket], batch_size: int, seed: int) -> None:
        self._buckets = buckets
        self._batch_size = batch_size
        self._seed = seed
        self._counts = np.array([len(bucket.pictures) for bucket in buckets])
        self._plan = Plan(0, np.empty(0, np.int64), np.empty(0, np.int64))  # the latest
        self._rounds: dict[int, tuple[int, NDArray[np.int64]]] = {}  # the latest of each bucket

    @classmethod
    def of(
        cls, sizes: NDArray[np.int32], repeats: NDArray[np.int32], batch_size: int, seed: int
    ) -> "Order":
        """The order of pictures (N,) with these sizes (N, 2) and repeats (N,)."""
        joined = sizes[:, 0].astype(np.int64) << 32 | sizes[:, 1]  # pairs sort ten times as slowly
        distinct, which = np.unique(joined, return_inverse=True)
        rows = np.argsort(which, kind="stable").astype(np.int32)
        parts = np.split(rows, np.cumsum(np.bincount(which))[:-1])
        buckets = [
            Bucket((size >> 32, size & 0xFFFFFFFF), np.repeat(part, repeats[part]))
            for size, part in zip(distinct.tolist(), parts, strict=True)
        ]
        return cls(buckets, batch_size, seed)

    def batch(self, number: int) -> list[int]:
        """The pictures of a micro-batch, counted from 0 over all processes and steps."""
        place = number - self._plan.first
        if not 0 <= place < len(self._plan.buckets):
            self._plan = self._planned(self._epoch_of(number))
            place = number - self._plan.first
        bucket = int(self._plan.buckets[place])
        start = int(self._plan.earlier[place]) * self._batch_size
        return [self._picture(bucket, start + slot) for slot in range(self._batch_size)]

    def _batches_until(self, epoch: int) -> NDArray[np.int64]:
        """How many batches of each bucket come before an epoch: its share, rounded."""
        return (2 * epoch * self._counts + self._batch_size) // (2 * self._batch_size)

    def _epoch_of(self, number: int) -> int:
        """The epoch in which a batch lies: the last one that begins at it or before."""
        entries = int(self._counts.sum())
        epoch = number * self._batch_size // entries
        while int(self._batches_until(epoch).sum()) > number:
            epoch -= 1
        while int(self._batches_until(epoch + 1).sum()) <= number:
            epoch += 1
        return epoch

    def _planned(self, epoch: int) -> Plan:
        before = self._batches_until(epoch)
        counts = self._batches_until(epoch + 1) - before
        buckets = np.repeat(np.arange(len(counts)), counts)
        buckets = rng.numpy_random(self._seed, "buckets", epoch).permutation(buckets)
        earlier = np.empty_like(buckets)
        numbers = map(np.arange, before, before + counts)
        earlier[np.argsort(buckets, kind="stable")] = np.concatenate([*numbers])
        return Plan(int(before.sum()), buckets, earlier)

    def _picture(self, bucket: int, position: int) -> int:
        """The picture at a position of a bucket's stream; the latest round's order is kept."""
        size, pictures = self._buckets[bucket].size, self._buckets[bucket].pictures
        turn, place = divmod(position, len(pictures))
        if self._rounds.get(bucket, (-1,))[0] != turn:
            draw = rng.numpy_random(self._seed, "order", turn, *size)
            self._rounds[bucket] = (turn, draw.permutation(len(pictures)))
        return int(pictures[self._rounds[bucket][1][place]])
