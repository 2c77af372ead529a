"""Where along the noise schedule the hypernetwork gains: timestep bands and parts of the UNet."""

from collections.abc import Mapping
from typing import Any

from hn.evaluation.report.findings import Findings, folded, missing, section, table
from hn.evaluation.report.markup import Markup, element
from hn.evaluation.report.plots import Plot, Series, figure
from hn.evaluation.report.wording import (
    checkpoint_name,
    interval,
    is_interval,
    is_number,
    number,
    percent,
)


def bands(findings: Findings) -> Markup:
    """The gain in each part of the schedule, and how much is added to each context width."""
    checkpoint = findings.recommended or (findings.checkpoints or [{}])[-1]
    return section(
        "bands",
        "Timesteps and widths",
        element("p", f"Of {checkpoint_name(checkpoint)}, at strength 1.") if checkpoint else None,
        element("div", _timesteps(checkpoint), _widths(checkpoint), class_="plots"),
        _numbers(checkpoint),
    )


def _timesteps(checkpoint: Mapping[str, Any]) -> Markup:
    measured = [one for one in checkpoint.get("bands", []) if _has_change(one)]
    if not measured:
        return missing("Timestep bands were not measured: they need held-out pictures.")
    points = [(_middle(one), one["loss"] / one["base_loss"] - 1) for one in measured]
    ends = [
        (
            _middle(one),
            one["difference"]["low"] / one["base_loss"],
            one["difference"]["high"] / one["base_loss"],
        )
        for one in measured
        if is_interval(one.get("difference"))
    ]
    best = min(measured, key=lambda one: one["loss"] / one["base_loss"])
    summary = (
        f"Change of the loss against the base model, with 95\u202f% intervals. Most is gained "
        f"between {number(best['from'])} and {number(best['to'])}: "
        f"{percent(best['loss'] / best['base_loss'] - 1)}."
    )
    edges = (measured[0]["from"], measured[-1]["to"])
    series = [
        Series("hypernetwork", "main", points, ends, band=False),
        Series("base model", "base", [(edge, 0.0) for edge in edges], marks=False),
    ]
    x_label = "timestep (right: more noise)"
    return figure(Plot("Timestep bands", summary, series, x_label, shares=True, may_be_log=False))


def _has_change(band: Mapping[str, Any]) -> bool:
    finite = all(is_number(band.get(key)) for key in ("from", "to", "loss", "base_loss"))
    return finite and band["base_loss"] > 0


def _middle(band: Mapping[str, Any]) -> float:
    return (band["from"] + band["to"]) / 2


def _widths(checkpoint: Mapping[str, Any]) -> Markup:
    ratios = checkpoint.get("residual_ratio") or {}
    if not ratios:
        return missing("The residual ratio of the widths was not measured.")
    columns = ["Width and side", "Ratio"]
    rows = [(name, number(ratio)) for name, ratio in sorted(ratios.items(), key=_width_first)]
    about = (
        "The size of what the hypernetwork adds to a context, relative to the context itself, for "
        "keys (k) and values (v). Far above 1, it replaces what the base model reads."
    )
    return element(
        "div",
        element("h3", "Residual ratio"),
        element("p", about, class_="summary"),
        table("Residual ratio by width", columns, rows),
    )


def _width_first(item: tuple[str, float]) -> tuple[int, str]:
    width, _, side = item[0].partition(".")
    return (int(width) if width.isdigit() else 0, side)


def _numbers(checkpoint: Mapping[str, Any]) -> Markup | None:
    rows = [
        (
            f"{number(one.get('from'))} to {number(one.get('to'))}",
            number(one.get("base_loss")),
            number(one.get("loss")),
            interval(one.get("difference")),
        )
        for one in checkpoint.get("bands", [])
    ]
    columns = ["Timesteps", "Base model", "Loss", "Difference, 95\u202f% interval"]
    caption = "Held-out loss by timestep band"
    return folded("Timestep bands as numbers", table(caption, columns, rows)) if rows else None
