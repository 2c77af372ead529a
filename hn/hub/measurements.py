"""What a card says of a run's measurements: of its pictures together, never of single ones."""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hn.hub.public import public, table

REPORT = "evaluation/report.json"


def in_words(folder: Path, report: dict[str, Any]) -> str:
    """The held-out loss while training, and the evaluation afterwards; nothing if there is none."""
    return "\n\n".join(filter(None, [_heldout(folder), *_evaluated(report)]))


def recommended_strength(report: dict[str, Any]) -> str:
    """The strength that the evaluation recommends; 1 without one."""
    return _number(_section(report, "recommendation").get("strength"), "1")


def read_report(folder: Path) -> dict[str, Any]:
    """The evaluation of the run; empty where there is none that can be read, which is said."""
    path = folder / REPORT
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        print(f"the card leaves out {path}, which cannot be read: {error}", file=sys.stderr)
        return {}
    return found if isinstance(found, dict) else {}


def _heldout(folder: Path) -> str:
    """The last held-out loss of `metrics.jsonl`, if one was measured."""
    rows = [row for row in _rows(folder / "metrics.jsonl") if "heldout_loss" in row]
    if not rows:
        return ""
    last = rows[-1]
    numbers = [_number(last.get(f"heldout_{key}")) for key in ("base_loss", "loss", "gain")]
    return "Loss on pictures that were not trained on, on the same noise:\n\n" + table(
        ("step", "base model", "with the hypernetwork", "gain"), [(last["step"], *numbers)]
    )


def _evaluated(report: dict[str, Any]) -> list[str]:
    """What of `report.json` says nothing of single pictures."""
    chosen = _section(report, "recommendation")
    lines = []
    if chosen:
        kind = " (average)" if chosen.get("kind") == "ema" else ""
        lines.append(
            f"Recommended: step {_number(chosen.get('step'))}{kind} at strength "
            f"{_number(chosen.get('strength'))}. {public(str(chosen.get('reason', '')))}"
        )
    found = _list(report.get("checkpoints"))
    ranking = map(_ranked, sorted(found, key=lambda it: _sortable(it.get("rank"))))
    lines.append(table(("rank", "step", "weights", "held-out gain", "drift", "flags"), ranking))
    columns = ("strength", "style", "agreement", "diversity", "drift")
    points = _list(_section(report, "sweep").get("points"))
    lines.append(table(columns, [[_number(it.get(key)) for key in columns] for it in points]))
    return lines


def _ranked(checkpoint: dict[str, Any]) -> list[str]:
    rank, step, gain, drift = (
        _number(checkpoint.get(key)) for key in ("rank", "step", "gain", "drift")
    )
    flags = ", ".join(map(str, checkpoint.get("flags") or [])) or "none"
    return [rank, step, str(checkpoint.get("kind", "raw")), gain, drift, flags]


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    """The lines of `metrics.jsonl`; one that is being written counts as none."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _section(report: dict[str, Any], name: str) -> dict[str, Any]:
    found = report.get(name)
    return found if isinstance(found, dict) else {}


def _list(found: Any) -> list[dict[str, Any]]:
    return [it for it in found if isinstance(it, dict)] if isinstance(found, list) else []


def _number(value: Any, missing: str = "-") -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return missing
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sortable(rank: Any) -> float:
    return rank if isinstance(rank, int | float) else math.inf
