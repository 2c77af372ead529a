"""What is odd with pictures and captions but stops nothing: said once, counted, kept for
`status.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hn.errors import named

LISTED = 20  # in `status.json`, but for what is left out: there all are


@dataclass(frozen=True)
class _Finding:
    words: str
    names: list[str]
    count: int


class Tally:
    """Findings by what they are about (`train`, `held_out`, ...) and by kind."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, _Finding]] = {}

    def add(
        self,
        about: str,
        kind: str,
        words: str,
        names: Sequence[str],
        *,
        source: object = None,
        count: int | None = None,
        whole: bool = False,
    ) -> None:
        """Say and keep that `names`, of a `source`, are of a kind; nothing if there are none.

        `count`: how many there are of which these are the first. `whole`: keep all of them.
        """
        count = len(names) if count is None else count
        if count:
            print(f"{words}{'' if source is None else f', of {source}'}: {named(names, count)}")
            self.keep(about, kind, words, names, count=count, whole=whole)

    def keep(
        self,
        about: str,
        kind: str,
        words: str,
        names: Sequence[str],
        *,
        count: int | None = None,
        whole: bool = False,
    ) -> None:
        """The same of what is said elsewhere."""
        count = len(names) if count is None else count
        kinds = self._found.setdefault(about, {})
        before = kinds.get(kind, _Finding(words, [], 0))
        kept = [*before.names, *names]
        kinds[kind] = _Finding(words, kept if whole else kept[:LISTED], before.count + count)

    def as_json(self) -> dict[str, Any]:
        """All findings in plain values."""
        return {
            about: {
                kind: {"what": it.words, "count": it.count, "names": it.names}
                for kind, it in kinds.items()
            }
            for about, kinds in self._found.items()
        }
