"""The course of the training: held-out loss, training loss, learning rate, residual ratios."""

from collections.abc import Mapping, Sequence
from typing import Any

from hn.evaluation.report.curves import Metrics, smoothed, thinned
from hn.evaluation.report.findings import Findings, folded, missing, section, table
from hn.evaluation.report.markup import Markup, element
from hn.evaluation.report.plots import Look, Plot, Series, figure
from hn.evaluation.report.wording import (
    checkpoint_name,
    interval,
    is_interval,
    is_number,
    number,
    percent,
)

RATIO = "residual_ratio/"  # what the trainer writes for each width and side


def learning(findings: Findings) -> Markup:
    """Curves over steps."""
    metrics = findings.metrics
    parts = [_heldout(findings), _loss(metrics), _rate(metrics), _ratios(findings)]
    unreadable = (
        missing(f"{metrics.unreadable} lines of metrics.jsonl could not be read and are left out.")
        if metrics.unreadable
        else None
    )
    numbers = _numbers(findings.checkpoints)
    plots = element("div", parts, class_="plots")
    return section("learning", "Course of the training", unreadable, plots, numbers)


def _heldout(findings: Findings) -> Markup:
    """The loss on unseen pictures with its interval, against the base model's."""
    kinds: list[tuple[str, Look, str]] = [
        ("raw", "main", "hypernetwork"),
        ("ema", "second", "hypernetwork, EMA"),
    ]
    series = [_of_kind(findings.checkpoints, *kind) for kind in kinds]
    if not any(one.points for one in series):
        series = [_while_training(findings.metrics)]
    base = _base(findings)
    drawn = [one for one in series if one.points]
    if not drawn:
        return element(
            "figure",
            element("figcaption", element("h3", "Held-out loss")),
            missing(
                "No held-out loss: the run had no pictures that it was not trained on. Give "
                "validation_data_dir, or a share of the training pictures (validation_split)."
            ),
        )
    steps = [x for one in drawn for x, _ in one.points]
    against = [Series("base model", "base", [(min(steps), base), (max(steps), base)], marks=False)]
    first, last = drawn[0].points[0], drawn[0].points[-1]
    summary = (
        f"From {number(first[1])} at step {number(first[0])} to {number(last[1])} at step "
        f"{number(last[0])}; base model {number(base)}. Shaded: 95\u202f% interval."
    )
    shown = [*drawn, *(against if is_number(base) else [])]
    return figure(Plot("Held-out loss", summary, shown, "step", x_at=_step_to_point_out(findings)))


def _of_kind(checkpoints: Sequence[Mapping[str, Any]], kind: str, look: Look, name: str) -> Series:
    chosen = [
        one
        for one in checkpoints
        if one.get("kind", "raw") == kind and is_number(one.get("loss")) and is_number(one["step"])
    ]
    intervals = [
        (
            one["step"],
            one["base_loss"] + one["difference"]["low"],
            one["base_loss"] + one["difference"]["high"],
        )
        for one in chosen
        if is_interval(one.get("difference")) and is_number(one.get("base_loss"))
    ]
    return Series(name, look, [(one["step"], one["loss"]) for one in chosen], intervals)


def _while_training(metrics: Metrics) -> Series:
    """The held-out loss as it was measured during the training."""
    points = thinned(metrics.curve("heldout_loss"))
    errors = dict(metrics.curve("heldout_difference_error"))
    intervals = [(x, y - 1.96 * errors[x], y + 1.96 * errors[x]) for x, y in points if x in errors]
    return Series("hypernetwork", "main", points, intervals)


def _base(findings: Findings) -> Any:
    measured = [one.get("base_loss") for one in findings.checkpoints]
    measured += [y for _, y in findings.metrics.curve("heldout_base_loss")]
    return next((value for value in measured if is_number(value)), None)


def _step_to_point_out(findings: Findings) -> tuple[float, str] | None:
    step = findings.recommendation.get("step")
    return (step, "recommended") if is_number(step) else None


def _loss(metrics: Metrics) -> Markup:
    points = metrics.curve("loss")
    lost = metrics.not_finite("loss")
    smooth = thinned(smoothed(points))
    summary = (
        f"Smoothed, from {number(smooth[0][1])} to {number(smooth[-1][1])} over "
        f"{len(points):,} reports."
        if points
        else "metrics.jsonl has no training loss."
    )
    series = [
        Series("as reported", "faint", thinned(points), marks=False),
        Series("smoothed", "main", smooth, marks=False),
    ]
    note = f"{lost} values are not finite and not drawn." if lost else None
    return figure(Plot("Training loss", summary, series, "step", note=note))


def _rate(metrics: Metrics) -> Markup:
    points = metrics.curve("learning_rate")
    summary = (
        f"At most {number(max(y for _, y in points))}, at the end {number(points[-1][1])}."
        if points
        else "metrics.jsonl has no learning rate."
    )
    series = [Series("learning rate", "main", thinned(points), marks=False)]
    return figure(Plot("Learning rate", summary, series, "step", may_be_log=False))


def _ratios(findings: Findings) -> Markup | None:
    """How much the hypernetwork adds to its contexts: the largest and the smallest of its parts."""
    curves = {
        name.removeprefix(RATIO): findings.metrics.curve(name)
        for name in findings.metrics.names(RATIO)
    }
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    last: dict[str, float] = {name: points[-1][1] for name, points in curves.items()}
    most, least = max(last, key=last.__getitem__), min(last, key=last.__getitem__)
    summary = (
        f"The size of what is added to a context, relative to the context: at the end from "
        f"{number(last[least])} (width and side {least}) to {number(last[most])} ({most})."
    )
    series = [Series(f"{most}, largest", "main", thinned(curves[most]))]
    if least != most:
        series.append(Series(f"{least}, smallest", "second", thinned(curves[least])))
    return figure(Plot("Residual ratio", summary, series, "step"))


def _numbers(checkpoints: Sequence[Mapping[str, Any]]) -> Markup | None:
    """The same as a table, for whom a drawing says nothing."""
    rows = [
        (
            checkpoint_name(one),
            number(one.get("base_loss")),
            number(one.get("loss")),
            interval(one.get("difference")),
            percent(one.get("gain")),
        )
        for one in checkpoints
    ]
    columns = ["Checkpoint", "Base model", "Loss", "Difference, 95\u202f% interval", "Gain"]
    caption = "Held-out loss of each checkpoint"
    return folded("Held-out loss as numbers", table(caption, columns, rows)) if rows else None
