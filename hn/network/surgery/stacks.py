"""Hypernetworks and strengths as a command line names them."""

import math
from collections.abc import Sequence

from hn.errors import OptionError, shown
from hn.network import files
from hn.network.module import Hypernetwork


def read_stack(
    names: Sequence[str], strengths: Sequence[float] | None
) -> list[tuple[Hypernetwork, float]]:
    """Load files or repositories, each with its strength: one for all, one for each, or 1.

    Raises `OptionError` if the numbers differ, `ModelError` or `HubError` for what cannot be read.
    """
    return list(zip(map(files.load, names), spread(names, strengths, "strengths"), strict=True))


def spread(names: Sequence[str], numbers: Sequence[float] | None, what: str) -> list[float]:
    """One number for each name. Raises `OptionError`."""
    given = list(numbers or (1.0,))
    if len(given) not in (1, len(names)) or not all(map(math.isfinite, given)):
        raise OptionError(
            f"{what} must be one finite number, or one for each of the {len(names)} files; found "
            f"{shown(given)}"
        )
    return given if len(given) == len(names) else given * len(names)
