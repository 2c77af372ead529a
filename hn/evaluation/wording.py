"""An evaluation in words: why this checkpoint, and a table of them all."""

from collections.abc import Sequence
from typing import Any

from hn.evaluation import ranking
from hn.evaluation.bench import Bench
from hn.evaluation.measured import Measured
from hn.evaluation.sweep import Point


def reason_of(by_rank: Sequence[Measured], point: Point, bench: Bench) -> str:
    """One sentence: why the first of the checkpoints, and why at this strength."""
    best, comparison = by_rank[0], by_rank[0].judged.comparison
    shown = f"{_percent(comparison.gain)} of the base model's loss"
    if comparison.remaining.as_json():
        low, high = 1 - comparison.remaining.high, 1 - comparison.remaining.low
        shown += f" (95 % interval {_percent(low)} to {_percent(high)})"
    of = f"{len(best.judged.now)} {'held-out' if best.held_out else 'training'} pictures"
    sentence = f"Step {best.candidate.label} takes away {shown} on {of}"
    sentence += _against(by_rank) + f"; strength {point.strength:g} has "
    gain = point.losses.comparison.gain
    sentence += f"{_percent(gain)} at a drift of {point.numbers['drift']:.2f}"
    for flag in (ranking.MEMORISING, ranking.OVERFITTING):
        if flag in best.flags:
            sentence += f"; it is {flag}: train for fewer steps, or on more pictures"
    if bench.held_out is None:
        sentence += (
            "; no pictures were held out, so this says how well it learnt its training "
            "pictures, not what it brings to others: train with validation_split"
        )
    return sentence + "."


def _against(by_rank: Sequence[Measured]) -> str:
    """What it was chosen over."""
    best, others = by_rank[0].contender, [it.contender for it in by_rank[1:]]
    more = [it for it in others if it.gain > best.gain and not it.flags]
    if more:
        steps = ", ".join(f"{it.order:g}" for it in more)
        return f", no less beyond doubt than step {steps} and with less drift"
    skipped = [it for it in others if it.gain > best.gain]
    if skipped:
        flags = " and ".join(sorted({flag for it in skipped for flag in it.flags}))
        return f", the most of those that are not {flags}"
    return ", the most of all checkpoints" if others else ""


def summary(report: dict[str, Any]) -> str:
    """The table, and what is recommended."""
    return f"{table(report)}\n{recommendation(report)}"


def table(report: dict[str, Any]) -> str:
    """The checkpoints by rank, a line each."""
    lines = ["rank  step        gain    loss    drift  closest  flags"]
    for row in sorted(report["checkpoints"], key=lambda it: it["rank"]):
        step = f"{row['step']}{'' if row['kind'] == 'raw' else ' ' + row['kind']}"
        closer = row.get("memorisation", {}).get("closer")
        lines.append(
            f"{row['rank']:>4}  {step:<10}{_number(row.get('gain'), '7.1%')} "
            f"{_number(row.get('loss'), '8.4f')} {_number(row.get('drift'), '7.3f')}  "
            f"{_number(closer, '7.0%')}  {', '.join(row['flags']) or '-'}"
        )
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    width = int(form.split(".", maxsplit=1)[0])
    return " " * (width - 1) + "-" if value is None else format(value, form)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def recommendation(report: dict[str, Any]) -> str:
    """What to use, and why, in two lines; or that there is nothing to use."""
    found = report.get("recommendation")
    if found is None:
        return (
            "recommended    none: every checkpoint is worse than the base model. Train again with "
            "a lower learning_rate."
        )
    return (
        f"recommended    {found['artifact']} at strength {found['strength']:g}\n"
        f"because        {found['reason']}"
    )
