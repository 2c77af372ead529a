"""The failures a user can mend, one class for each exit code.

Launchers flatten exit codes to 1, so the same number is written to `status.json` in the run's
folder. Each message says which setting or file, what was found, what is allowed, and what to do
next.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

NAMED = 5  # names in a line
SHOWN_FAULTS = 20  # lines of a list
INTERRUPTED = 75  # saved, can be resumed
BUG = 70  # anything that is not one of the classes below


def printable(text: str, also: str = "") -> str:
    """`text` with a question mark for what could steer a terminal or hide from the reader."""
    return "".join(c if c.isprintable() or c in also else "?" for c in text)


def shown(value: Any) -> str:
    """A value found in a file, for a message: short and printable, whatever it is."""
    if isinstance(value, list | tuple):
        more = ", ..." if len(value) > 8 else ""
        return f"({', '.join(map(_shown_alone, value[:8]))}{more})"
    return _shown_alone(value)


def meant(word: str, known: Iterable[str]) -> str:
    """A question after the known word that `word` resembles; nothing if it resembles none."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def named(names: Sequence[str], count: int | None = None) -> str:
    """How many, and the first few by name; a strange name is shown escaped.

    `count` says how many there are of which `names` are the first, at least `NAMED`.
    """
    count = len(names) if count is None else count
    more = ", ..." if count > NAMED else ""
    return f"{count} ({', '.join(map(repr, names[:NAMED]))}{more})"


def listed(headline: str, faults: Sequence[str]) -> str:
    """A headline with the first faults below it, one in a line, and how many more there are."""
    more = [f"... and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
    return "\n  ".join([headline + ":", *faults[:SHOWN_FAULTS], *more])


def _shown_alone(value: Any) -> str:
    if value is not None and not isinstance(value, bool | int | float | str):
        return f"<{type(value).__name__}>"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "<an int of more than 63 bits>"  # Python may refuse to print it
    text = repr(value)  # of text: quoted, escaped
    return text if len(text) <= 200 else f"{text[:200]}..."


class UserError(Exception):
    """A failure with a remedy; `exit_code` is the process's.

    Its text is printable, whatever the names of files in it hold.
    """

    exit_code = BUG

    def __str__(self) -> str:
        return printable(super().__str__(), also="\n")


class OptionError(UserError, ValueError):
    """A setting, or a combination of settings, that cannot work."""

    exit_code = 2


class DataError(UserError):
    """Pictures or captions that cannot be used."""

    exit_code = 3


class ModelError(UserError, ValueError):
    """A base model, hypernetwork or checkpoint file that cannot be used."""

    exit_code = 4


class StorageError(UserError):
    """A disk that is full, or a folder that cannot be written."""

    exit_code = 5


class NumericsError(UserError):
    """A loss or gradient that is not a finite number."""

    exit_code = 6


class DistributedError(UserError):
    """Processes that do not agree."""

    exit_code = 7


class HubError(UserError):
    """The Hugging Face Hub cannot be reached, or does not allow what is asked."""

    exit_code = 8
