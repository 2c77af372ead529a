r"""Wildcards: `{a|b|c}` in a text stands for one of its alternatives, drawn for every sample.

They nest, and an alternative may be empty. Braces that are text are written `\{` and `\}`, a bar
within braces `\|`; a bar outside of braces is text. Braces without a bar are refused, since what is
meant cannot be known: some trainers write braces that are text as `{{` and `}}`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from random import Random

MAX_DEPTH = 16  # braces within braces
_PIECES = re.compile(r"\\[{|}]|[{|}]|[^\\{|}]+|\\")


@dataclass(frozen=True)
class Choice:
    """One pair of braces."""

    alternatives: list["Text"]


Text = list[str | Choice]  # to be joined


def parse(text: str) -> Text:
    """A text with its wildcards. Raises `ValueError` for braces that make none."""
    # of the text and of every open brace: its alternatives so far, the last one being read
    open_braces: list[list[Text]] = [[[]]]
    for match in _PIECES.finditer(text):
        piece, alternatives = match[0], open_braces[-1]
        if piece == "{":
            if len(open_braces) > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} braces lie within each other")
            open_braces.append([[]])
        elif piece == "|" and len(open_braces) > 1:
            alternatives.append([])
        elif piece == "}":
            _close(open_braces, match.start())
        else:
            alternatives[-1].append(piece[1:] if len(piece) == 2 and piece[1] in "{|}" else piece)
    if len(open_braces) > 1:
        raise ValueError(r"a brace is not closed; write \{ for a brace that is text")
    return open_braces[0][0]


def draw(text: Text, random: Random) -> str:
    """Draw one alternative of every wildcard, from left to right, the outer ones first."""
    return "".join(
        part if isinstance(part, str) else draw(random.choice(part.alternatives), random)
        for part in text
    )


def first(text: Text) -> str:
    """The text with the first alternative of every wildcard."""
    return "".join(part if isinstance(part, str) else first(part.alternatives[0]) for part in text)


def count(text: Text) -> int:
    """How many texts `every` gives, equal ones counted apart."""
    return prod(sum(map(count, part.alternatives)) for part in text if isinstance(part, Choice))


def every(text: Text) -> Iterator[str]:
    """Every text that can be drawn, the first of them as `first`. `count` first: it may be many."""
    parts = [
        [part]
        if isinstance(part, str)
        else [drawn for alternative in part.alternatives for drawn in every(alternative)]
        for part in text
    ]
    return map("".join, product(*parts))


def _close(open_braces: list[list[Text]], position: int) -> None:
    """Make a choice of the innermost open brace."""
    if len(open_braces) == 1:
        raise ValueError(
            rf"the brace at character {position} closes nothing; write \}} for a brace that is text"
        )
    alternatives = open_braces.pop()
    if len(alternatives) == 1:
        raise ValueError(
            rf"the braces that end at character {position} hold no |; write \{{ and \}} for braces "
            "that are text"
        )
    open_braces[-1][-1].append(Choice(alternatives))
