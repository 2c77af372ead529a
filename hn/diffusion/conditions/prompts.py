r"""Prompts as the web UI's prompt encoder reads them; neither torch nor a tokenizer is needed here.

    (text)      weight x 1.1; nested, weights multiply
    [text]      weight / 1.1
    (text:1.3)  weight x 1.3
    \( \) \[ \] \\   the character itself
    BREAK       the rest of the chunk stays empty

Ours, because compel has another grammar (`word+`, `(word)1.5`) and other mathematics: below 1 it
blends with the context of the prompt without the word. What the web UI reads only when it draws
(`[from:to:when]`, `AND`, `<lora:...>`) is text here, as it is in the web UI's own captions.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

COMMA_REACH = 20  # tokens; the web UI's default "comma padding backtrack"
_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_OPENING = {")": "(", "]": "["}
_BREAK = re.compile(r"\bBREAK\b")
_MARK = re.compile(
    r"""
      \\ (?P<escaped> [()\[\]\\] )?   # before anything else a backslash is dropped
    | (?P<opening> [(\[] )
    | : \s* (?P<weight> [+-]? (?: \d+ (?: \.\d* )? | \.\d+ ) ) \s* \)
    | (?P<closing> [)\]] )
    """,
    re.VERBOSE,
)


class Run(NamedTuple):
    """A part of a prompt whose tokens have the same weight."""

    text: str
    weight: float


class Token(NamedTuple):
    """A token's number in the vocabulary, and its weight."""

    id: int
    weight: float


def parse(prompt: str) -> list[list[Run]]:
    """The sections of a prompt, which BREAK separates, each as runs of equal weight.

    Nothing is an error: a bracket never closed reaches to the end, one never opened is text, and so
    is a weight that is no number or stands in no round bracket.
    """
    reader, place = _Reader(), 0
    for mark in _MARK.finditer(prompt):
        reader.text(prompt[place : mark.start()])
        reader.mark(mark)
        place = mark.end()
    reader.text(prompt[place:])
    return reader.sections()


def chunks(sections: Sequence[list[Token]], size: int, comma: int) -> list[list[Token]]:
    """Chunks of at most `size` tokens; each section begins a new one.

    Where a chunk is full and a comma is among its last `COMMA_REACH` tokens, what follows the comma
    goes into the next chunk. An empty prompt is one empty chunk, an empty last section none.
    """
    split = [_split(section, size, comma) for section in sections]
    found = [chunk for parts in split for chunk in parts]
    return found if len(found) == 1 or found[-1] else found[:-1]


class _Reader:
    """Collects pieces of text, with None for each BREAK, and weighs them as brackets close."""

    def __init__(self) -> None:
        self._pieces: list[str | None] = []
        self._weights: list[float] = []
        self._opened: dict[str, list[int]] = {"(": [], "[": []}

    def text(self, text: str) -> None:
        first, *others = _BREAK.split(text)
        self._add(first.rstrip() if others else first)
        for number, part in enumerate(others, 1):
            self._add(None)
            self._add(part.strip() if number < len(others) else part.lstrip())

    def mark(self, mark: re.Match[str]) -> None:
        kind, text = mark.lastgroup, mark[0]
        if kind == "opening":
            self._opened[text].append(len(self._pieces))
        elif kind == "weight" and self._opened["("]:
            self._weigh(self._opened["("].pop(), float(mark["weight"]))
        elif kind == "closing" and self._opened[_OPENING[text]]:
            bracket = _OPENING[text]
            self._weigh(self._opened[bracket].pop(), _FACTORS[bracket])
        elif kind is not None:
            self._add(mark["escaped"] or text)

    def sections(self) -> list[list[Run]]:
        for bracket, starts in self._opened.items():
            for start in starts:
                self._weigh(start, _FACTORS[bracket])
        sections: list[list[Run]] = [[]]
        for piece, weight in zip(self._pieces, self._weights, strict=True):
            if piece is None:
                sections.append([])
            else:
                sections[-1].append(Run(piece, weight))
        return [_merged(section) for section in sections]

    def _add(self, piece: str | None) -> None:
        if piece != "":
            self._pieces.append(piece)
            self._weights.append(1.0)

    def _weigh(self, start: int, factor: float) -> None:
        self._weights[start:] = [weight * factor for weight in self._weights[start:]]


def _merged(runs: list[Run]) -> list[Run]:
    groups = groupby(runs, key=lambda run: run.weight)
    return [Run("".join(run.text for run in group), weight) for weight, group in groups]


def _split(tokens: list[Token], size: int, comma: int) -> list[list[Token]]:
    parts, rest = [], tokens
    while len(rest) > size:
        end = _end(rest, size, comma)
        parts.append(rest[:end])
        rest = rest[end:]
    return [*parts, rest]


def _end(tokens: list[Token], size: int, comma: int) -> int:
    """How many tokens the next chunk takes: to a near comma, unless a comma comes next anyway."""
    if tokens[size].id != comma:
        for place in range(size - 1, max(0, size - COMMA_REACH) - 1, -1):
            if tokens[place].id == comma:
                return place + 1
    return size
