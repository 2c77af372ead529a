"""What the sections of the page read: the evaluation, the run's metrics, and the files beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hn.evaluation.report.curves import Metrics
from hn.evaluation.report.markup import Child, Markup, element

NARROW = 2  # columns that fit on a phone; a wider table can be scrolled with the keyboard


@dataclass(frozen=True)
class Findings:
    """`evaluation` as `report.json` has it; `folder` is the report's, where its pictures lie."""

    evaluation: Mapping[str, Any]
    metrics: Metrics
    run: Path
    folder: Path

    @property
    def checkpoints(self) -> list[Mapping[str, Any]]:
        """Those that were evaluated, by step."""
        return self.evaluation.get("checkpoints", [])

    @property
    def recommendation(self) -> Mapping[str, Any]:
        """Step, kind, strength, artifact and reason; empty if nothing is recommended."""
        return self.evaluation.get("recommendation") or {}

    @property
    def recommended(self) -> Mapping[str, Any]:
        """The checkpoint that is recommended; empty if there is none."""
        named = self.recommendation.get("step"), self.recommendation.get("kind", "raw")
        for checkpoint in self.checkpoints:
            if (checkpoint.get("step"), checkpoint.get("kind", "raw")) == named:
                return checkpoint
        return {}

    @property
    def heldout(self) -> Mapping[str, Any]:
        """How many pictures and draws the held-out loss has, and where they are from."""
        return self.evaluation.get("heldout") or {}


def section(anchor: str, title: str, *content: Child) -> Markup:
    """A part of the page with its heading."""
    heading = element("h2", title, id=f"{anchor}-title")
    return element("section", heading, content, id=anchor, aria_labelledby=f"{anchor}-title")


def missing(text: str) -> Markup:
    """Says what is not there, and what would bring it."""
    return element("p", text, class_="missing")


def table(
    caption: str, columns: list[str], rows: Sequence[tuple[Child, ...]], *marked: int
) -> Markup:
    """A table whose first column heads its rows; it scrolls in its own frame where it is wide.

    `marked`: numbers of the rows that are pointed out.
    """
    head = element("tr", [element("th", column, scope="col") for column in columns])
    body = [
        element(
            "tr",
            element("th", cells[0], scope="row"),
            [element("td", cell) for cell in cells[1:]],
            class_="marked" if number in marked else None,
        )
        for number, cells in enumerate(rows)
    ]
    inner = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", body),
    )
    if len(columns) <= NARROW:
        return element("div", inner, class_="frame")
    return element("div", inner, class_="frame", role="region", aria_label=caption, tabindex="0")


def folded(summary: str, *content: Child) -> Markup:
    """Details that open when asked for."""
    return element("details", element("summary", summary), content)
