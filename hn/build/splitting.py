"""Held-out pictures taken from those to train on (`validation_split`).

Which ones follows from the seed and the content of each picture alone, so that pictures that are
added move no other across. What resembles a held-out picture is not trained on either: the same
picture saved again, resized or mirrored would tell what the held-out loss is to find out.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from PIL import ImageOps

from hn.checkup.likeness import Fingerprint, fingerprint, resembling
from hn.data.parallel import in_order, thread_count
from hn.data.pictures.decoding import Example, open_picture, survey
from hn.data.pictures.images import examples
from hn.errors import DataError, named

Result = TypeVar("Result")


@dataclass(frozen=True)
class Division:
    """Pictures to train on, held-out ones, and the names of those that are neither."""

    train: Dataset
    held_out: Dataset
    excluded: list[str]

    def __str__(self) -> str:
        text = f"validation_split: {len(self.held_out)} pictures held out, {len(self.train)} to "
        text += "train on"
        return text + (
            f"; left out, since they resemble held-out ones: {named(self.excluded)}"
            if self.excluded
            else ""
        )


def divide(dataset: Dataset, split: float, seed: int) -> Division:
    """Hold out a share below 1, or that many pictures; none that are for regularization.

    Raises `DataError` if nothing is left to train on.
    """
    places = np.array([*_in_threads(dataset, "dividing", lambda it: place(it, seed))])
    eligible = ~np.array(dataset["regularization"], dtype=bool)
    chosen = np.zeros(len(dataset), dtype=bool)
    chosen[eligible] = choose(places[eligible], split)
    held_out = dataset.select(np.flatnonzero(chosen))
    rest = dataset.select(np.flatnonzero(~chosen))
    prints = [print_ for pair in _in_threads(held_out, "held out", both_ways) for print_ in pair]
    alike = np.array([*_in_threads(rest, "comparing", lambda it: is_alike(it, prints))], dtype=bool)
    train = rest.select(np.flatnonzero(~alike))
    excluded = [name for name, out in zip(rest["name"], alike, strict=True) if out]
    if not eligible.any() or not (~np.array(train["regularization"], dtype=bool)).any():
        raise DataError(
            f"validation_split {split:g} leaves nothing to train on: {int(eligible.sum())} "
            f"pictures, {len(held_out)} held out, {len(excluded)} that resemble these. Give a "
            "smaller one, or other pictures in validation_data_dir."
        )
    return Division(train, held_out, excluded)


def place(example: Example, seed: int) -> float:
    """Where a picture stands between 0 and 1, by its content."""
    digest = hashlib.sha256(f"{seed}:".encode() + survey(example).content).digest()
    return int.from_bytes(digest[:8]) / 2**64


def choose(places: NDArray[np.floating], split: float) -> NDArray[np.bool_]:
    """Which of the pictures (N,) are held out.

    Of a share, those that stand below it, at least one: a picture that is added moves no other. Of
    a number, the first so many.
    """
    count = max(1, int((places < split).sum())) if split < 1 else int(split)
    chosen = np.zeros(len(places), dtype=bool)
    chosen[np.argsort(places, kind="stable")[:count]] = True
    return chosen


def both_ways(example: Example) -> tuple[Fingerprint, Fingerprint]:
    """The fingerprints of a picture and of its mirror image."""
    rgb = open_picture(example)
    return fingerprint(rgb), fingerprint(ImageOps.mirror(rgb))


def is_alike(example: Example, prints: list[Fingerprint]) -> bool:
    """Whether a picture resembles one of those with these fingerprints."""
    return resembling(fingerprint(open_picture(example)), prints)


def _in_threads(dataset: Dataset, what: str, look: Callable[[Example], Result]) -> Iterator[Result]:
    return in_order(look, examples(dataset, what), thread_count())
