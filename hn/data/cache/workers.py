"""The processes that share the work of making a cache."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Workers:
    """How many processes there are, and which one this is.

    `agree` gives all of them the main one's value, `wait` lets them wait for each other.
    """

    count: int = 1
    rank: int = 0
    agree: Callable[[str], str] = lambda value: value
    wait: Callable[[], None] = lambda: None


ALONE = Workers()
