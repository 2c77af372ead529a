"""All checkpoints side by side, what their flags mean, and how close they come to copying."""

import math
from collections.abc import Mapping
from typing import Any

from hn.evaluation.report.findings import Findings, folded, missing, section, table
from hn.evaluation.report.markup import Child, Markup, element
from hn.evaluation.report.wording import (
    FLAGS,
    checkpoint_name,
    flag_meaning,
    interval,
    number,
    percent,
)


def ranking(findings: Findings) -> Markup:
    """The table of the checkpoints, best first."""
    if not findings.checkpoints:
        return section("ranking", "Checkpoints", missing("No checkpoint was evaluated."))
    checkpoints = sorted(findings.checkpoints, key=lambda one: one.get("rank", math.inf))
    marked = [i for i, one in enumerate(checkpoints) if one is findings.recommended]
    columns = [
        "Checkpoint",
        "Rank",
        "Gain, unseen",
        "Gain, training",
        "Held-out loss",
        "Loss minus base, 95\u202f% interval",
        "Drift",
        "Flags",
    ]
    rows = [_row(one, one is findings.recommended) for one in checkpoints]
    return section(
        "ranking",
        "Checkpoints",
        element(
            "p",
            "Gain is the share of the base model's loss that is gone, on the same pictures, noise "
            "and timesteps: 0 is no better than the base model, less is worse. Drift is how far "
            "predictions for unrelated prompts move.",
        ),
        table("Checkpoints, best first", columns, rows, *marked),
        _flags(checkpoints),
        _memorisation(checkpoints),
    )


def _row(checkpoint: Mapping[str, Any], recommended: bool) -> tuple[Child, ...]:
    train = checkpoint.get("train") or {}
    badge = element("span", "recommended", class_="badge") if recommended else None
    flags = ", ".join(checkpoint.get("flags", [])) or "none"
    return (
        [checkpoint_name(checkpoint), " ", badge],
        number(checkpoint.get("rank")),
        percent(checkpoint.get("gain")),
        percent(train.get("gain")),
        number(checkpoint.get("loss")),
        interval(checkpoint.get("difference")),
        percent(checkpoint.get("drift")),
        flags,
    )


def _flags(checkpoints: list[Mapping[str, Any]]) -> Markup:
    """What the flags mean: in the open for those that occur, folded for the others."""
    present = list(dict.fromkeys(flag for one in checkpoints for flag in one.get("flags", [])))
    absent = [flag for flag in FLAGS if flag not in present]
    return element(
        "div",
        _explained(present) if present else element("p", "No checkpoint is flagged."),
        folded("Flags that did not occur", _explained(absent)) if absent else None,
    )


def _explained(flags: list[str]) -> Markup:
    return element(
        "dl",
        [[element("dt", flag), element("dd", flag_meaning(flag))] for flag in flags],
        class_="flags",
    )


def _memorisation(checkpoints: list[Mapping[str, Any]]) -> Markup:
    """How near generated pictures lie to training pictures, against how near these lie."""
    measured = [one for one in checkpoints if one.get("memorisation")]
    if not measured:
        return missing("Memorisation was not measured: it needs pictures generated from prompts.")
    rows = [
        (
            checkpoint_name(one),
            number(one["memorisation"].get("nearest")),
            number(one["memorisation"].get("baseline")),
            percent(one["memorisation"].get("closer")),
            "memorising" if one["memorisation"].get("flag") else "no",
        )
        for one in measured
    ]
    columns = ["Checkpoint", "Nearest", "Baseline", "Closer than baseline", "Flag"]
    about = (
        "Nearest: the distance of a generated picture to the training picture it is closest to. "
        "Baseline: the same distance of each training picture to the others. A model that learnt "
        "the style and no picture stays near the baseline."
    )
    return folded(
        "Memorisation: does it repeat training pictures?",
        element("p", about),
        table("Distance to the nearest training picture", columns, rows),
    )
