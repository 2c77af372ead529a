"""What attention layers read, noted: pictures layer by layer, texts once for all layers.

A text is the same for all layers that read it, and in every step of a drawing; only how much
attention its tokens get differs. So the sums over texts of a layer, hundreds of MiB in each of the
70 of Stable Diffusion XL, need not be held: they are made when they are asked for.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from hn.network.module import Stack, transform_context

AT_ONCE = 8  # texts


class Notes(Protocol):
    """What is kept of the contexts of a layer."""

    def add(self, x: Tensor, added: Mapping[str, Tensor], weights: Tensor) -> None:
        """Take in contexts (N, D), what they get added (N, D) by side, and their weights (N,)."""
        ...


Kept = TypeVar("Kept", bound=Notes)
Begin = Callable[[], Kept]
"""Begins the notes of a layer."""


class Texts:
    """Contexts of texts and what a stack adds to them, each once and on the CPU."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._places: dict[bytes, int] = {}
        self._held: list[tuple[Tensor, ...]] = []  # x, what k and v get added, each (T, D)
        self._last: tuple[Tensor, list[int], Tensor] | None = None

    def note(self, text: Tensor) -> tuple[list[int], Tensor]:
        """The places of texts (B, T, D), and what their keys are made of; layer after layer asks
        for the same.
        """
        if self._last is None or self._last[0] is not text:
            for_k, for_v = transform_context(text, self._stack)
            rows = zip(*(it.cpu() for it in (text, for_k - text, for_v - text)), strict=True)
            self._last = text, [self._place(row) for row in rows], for_k
        return self._last[1:]

    def rows(self, places: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Contexts (N, D) of these texts, and what they get added, by side."""
        x, k, v = (torch.cat(it) for it in zip(*map(self._held.__getitem__, places), strict=True))
        return x, {"k": k, "v": v}

    def _place(self, row: tuple[Tensor, ...]) -> int:
        digest = hashlib.sha256(row[0].contiguous().view(torch.uint8).numpy().data).digest()
        if digest not in self._places:
            self._places[digest] = len(self._held)
            self._held.append(row)
        return self._places[digest]


class Noted(Mapping[str, Kept], Generic[Kept]):
    """The notes of each layer by its name; those of texts are made anew whenever they are asked
    for, but for the last.
    """

    def __init__(self, begin: Mapping[str, Begin[Kept]], texts: Mapping[str, Texts]) -> None:
        self._begin = begin
        self._texts = texts
        self._of_pictures: dict[str, Kept] = {}
        self._weights: dict[str, dict[int, Tensor]] = {}  # of each text's tokens (T,), by layer
        self._last: tuple[str, Kept] | None = None

    def of_pictures(self, name: str) -> Kept:
        """Where to note what a layer reads of pictures."""
        if name not in self._of_pictures:
            self._of_pictures[name] = self._begin[name]()
        return self._of_pictures[name]

    def note_text(self, name: str, places: list[int], weights: Tensor) -> None:
        """Note that a layer reads texts with these weights (B, T)."""
        sums = self._weights.setdefault(name, {})
        for place, weight in zip(places, weights, strict=True):
            sums[place] = sums[place] + weight if place in sums else weight

    def __getitem__(self, name: str) -> Kept:
        if name in self._of_pictures:
            return self._of_pictures[name]
        if self._last is None or self._last[0] != name:
            self._last = None  # before the next takes its room
            self._last = name, self._made(name)
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._begin)

    def __len__(self) -> int:
        return len(self._begin)

    def _made(self, name: str) -> Kept:
        kept, sums = self._begin[name](), self._weights.get(name, {})
        for start in range(0, len(sums), AT_ONCE):
            places = [*sums][start : start + AT_ONCE]
            weights = torch.cat([sums[place].cpu() for place in places])
            kept.add(*self._texts[name].rows(places), weights)
        return kept
