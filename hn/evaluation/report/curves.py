"""What the training wrote down: the rows of `metrics.jsonl`, thinned and smoothed for a drawing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hn.evaluation.report.wording import is_number

DRAWN = 300  # points of a curve; a screen shows no more
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Metrics:
    """The rows by step, and how many lines could not be read."""

    rows: list[dict[str, Any]]
    unreadable: int = 0

    def curve(self, name: str) -> Points:
        """(step, value) of every row that has a finite one."""
        return [(row["step"], row[name]) for row in self.rows if is_number(row.get(name))]

    def not_finite(self, name: str) -> int:
        """How many rows have a value that is not finite."""
        return sum(name in row and not is_number(row[name]) for row in self.rows)

    def names(self, prefix: str) -> list[str]:
        """What rows have that starts with `prefix`, in order of appearance."""
        found = (name for row in self.rows for name in row if name.startswith(prefix))
        return list(dict.fromkeys(found))


def read_metrics(path: Path) -> Metrics:
    """The rows of a run, by step; none if there is no such file."""
    if not path.is_file():
        return Metrics([])
    found = list(_rows(path))
    rows = [row for row in found if row is not None]
    return Metrics(sorted(rows, key=lambda row: row["step"]), len(found) - len(rows))


def _rows(path: Path) -> Iterator[dict[str, Any] | None]:
    """A row for each line; None for what is not a row with a step."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            usable = isinstance(row, dict) and is_number(row.get("step"))
            yield row if usable else None


def thinned(points: Points) -> Points:
    """At most `DRAWN` points: means of equal runs of neighbours."""
    size = -(-len(points) // DRAWN)
    return [_mean(points[start : start + size]) for start in range(0, len(points), size or 1)]


def smoothed(points: Points) -> Points:
    """The running mean over a twentieth of the curve to both sides; fewer at its ends."""
    reach = len(points) // 20
    totals = [0.0]
    for _, value in points:
        totals.append(totals[-1] + value)
    smooth = []
    for at, (x, _) in enumerate(points):
        near = min(reach, at, len(points) - 1 - at)  # as far to both sides: no shift
        start, end = at - near, at + near + 1
        smooth.append((x, (totals[end] - totals[start]) / (end - start)))
    return smooth


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return (
        sum(x for x, _ in points) / len(points),
        sum(y for _, y in points) / len(points),
    )
