"""The strength sweep: what each strength brings and what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hn.evaluation.report.findings import Findings, folded, missing, section, table
from hn.evaluation.report.markup import Child, Markup, element
from hn.evaluation.report.plots import Plot, Series, figure
from hn.evaluation.report.wording import (
    checkpoint_name,
    interval,
    is_interval,
    is_number,
    number,
    percent,
    tick,
)


@dataclass(frozen=True)
class Measure:
    """A measure of the sweep: its key, its title, what it says, and whether it is a share."""

    key: str
    title: str
    meaning: str
    shares: bool = True

    def write(self, value: Any) -> str:
        """A value in words."""
        return percent(value) if self.shares else number(value)


MEASURES = [
    Measure("style", "Style", "How far from the base model's pictures to the training set."),
    Measure(
        "agreement",
        "Prompt agreement",
        "Share of pictures whose own prompt the base model finds likeliest among all.",
    ),
    Measure(
        "diversity",
        "Diversity",
        "How much seeds of one prompt differ, relative to the base model's.",
    ),
    Measure("drift", "Drift", "How far predictions for unrelated prompts move."),
    Measure("clip", "CLIP", "Likeness of picture and prompt as CLIP sees it.", shares=False),
    Measure("dino", "DINO", "Likeness to the training pictures as DINO sees it.", shares=False),
]


def strengths(findings: Findings) -> Markup:
    """A small plot of each measure over strength, and the numbers."""
    sweep = findings.evaluation.get("sweep") or {}
    points = [one for one in sweep.get("points", []) if is_number(one.get("strength"))]
    if not points:
        return section("strengths", "Strengths", missing("Strengths were not compared."))
    at = _pointed_out(findings)
    drawn = [_heldout(points, at), *(_measure(one, points, at) for one in MEASURES)]
    return section(
        "strengths",
        "Strengths",
        element("p", f"Of {checkpoint_name(sweep)}. Strength 0 is the base model."),
        element("div", drawn, class_="plots small"),
        folded("Strengths as numbers", _numbers(points)),
    )


def _pointed_out(findings: Findings) -> tuple[float, str] | None:
    strength = findings.recommendation.get("strength")
    return (strength, "recommended") if is_number(strength) else None


def _heldout(points: Sequence[Mapping[str, Any]], at: tuple[float, str] | None) -> Markup | None:
    measured = [(one["strength"], one.get("heldout") or {}) for one in points]
    losses = [(x, held["loss"]) for x, held in measured if is_number(held.get("loss"))]
    if not losses:
        return None
    base = next((loss for x, loss in losses if x == 0), None)
    intervals = [
        (x, base + held["difference"]["low"], base + held["difference"]["high"])
        for x, held in measured
        if base is not None and is_interval(held.get("difference"))
    ]
    best = min(losses, key=lambda point: point[1])
    summary = f"Lowest at strength {tick(best[0])}: {number(best[1])}. Shaded: 95\u202f% interval."
    series = [Series("hypernetwork", "main", losses, intervals)]
    return figure(Plot("Held-out loss", summary, series, "strength", x_at=at))


def _measure(
    measure: Measure, points: Sequence[Mapping[str, Any]], at: tuple[float, str] | None
) -> Markup | None:
    found = [
        (one["strength"], one[measure.key]) for one in points if is_number(one.get(measure.key))
    ]
    if not found:
        return None
    first, last = measure.write(found[0][1]), measure.write(found[-1][1])
    series = [Series("hypernetwork", "main", found)]
    return figure(
        Plot(
            measure.title,
            f"{measure.meaning} From {first} to {last}.",
            series,
            "strength",
            x_at=at,
            shares=measure.shares,
            may_be_log=False,
        )
    )


def _numbers(points: Sequence[Mapping[str, Any]]) -> Markup:
    shown = [one for one in MEASURES if any(one.key in point for point in points)]
    columns = ["Strength", "Held-out loss", "Loss minus base", *(one.title for one in shown)]
    rows: list[tuple[Child, ...]] = []
    for point in points:
        held = point.get("heldout") or {}
        rows.append(
            (
                tick(point["strength"]),
                number(held.get("loss")),
                interval(held.get("difference")),
                *(one.write(point.get(one.key)) for one in shown),
            )
        )
    return table("Measures by strength", columns, rows)
