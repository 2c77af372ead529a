"""The whole evaluation of a run: measure, rank, sweep, recommend; `report.json`, pictures."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from hn import __version__
from hn.diffusion.pipeline import save_picture
from hn.evaluation import paired, ranking, sweep
from hn.evaluation.bench import Bench
from hn.evaluation.candidates import Candidate
from hn.evaluation.measured import Measured, Measurer, as_json, measure_all
from hn.evaluation.report import html, tensorboard
from hn.evaluation.sweep import Point, Sweep
from hn.evaluation.wording import reason_of
from hn.storage import write_bytes

PROMPTS = 8  # of the sweep, where none are given
GRID = "sweep.png"


@dataclass(frozen=True)
class Evaluation:
    """What was found, as JSON values, and the pictures by file name."""

    report: dict[str, Any]
    pictures: dict[str, Image.Image]

    def write(self, folder: Path, run: Path) -> None:
        """Write `report.html`, `report.json` and the pictures; add them to the run's TensorBoard.

        Raises `StorageError`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in self.pictures.items():
            save_picture(picture, folder / name)
        text = json.dumps(self.report, indent=1, ensure_ascii=False, allow_nan=False)
        write_bytes(folder / "report.json", (text + "\n").encode())
        html.write(self.report, run, folder / "report.html")
        tensorboard.write(self.report, run, folder)


def evaluate(
    bench: Bench, candidates: Sequence[Candidate], about: dict[str, Any], source: str
) -> Evaluation:
    """Measure all candidates, and the best one at several strengths.

    `about`: what the report says of the run. `source`: where held-out pictures come from.
    """
    measurer = Measurer(bench, candidates[0].load())
    found = measure_all(measurer, list(candidates))
    order = ranking.ranked([it.contender for it in found])
    best = found[order[0]]
    points = [] if ranking.DIVERGED in best.flags else _sweep(bench, measurer, best)
    timesteps = len(bench.base.alphas_cumprod)
    ranks = {row: rank for rank, row in enumerate(order, start=1)}
    report = {
        "format": 1,
        **about,
        "versions": _versions(),
        "heldout": {
            "pictures": len(bench.held_out) if bench.held_out else 0,
            "draws": bench.options.samples,
            "bands": [list(edge) for edge in paired.edges(timesteps)],
            "source": source,
        },
        "checkpoints": [as_json(it, timesteps, ranks[row]) for row, it in enumerate(found)],
        "pictures": _pictures(measurer, found),
        **_recommended(bench, [found[row] for row in order], points),
    }
    grids = {GRID: sweep.show(points)} if points else {}
    return Evaluation(finite(report), grids)


def _sweep(bench: Bench, measurer: Measurer, best: Measured) -> list[Point]:
    """The best checkpoint at several strengths."""
    pictures = measurer.pictures["heldout"] or measurer.pictures["train"]
    assert pictures is not None
    return Sweep(bench, best.candidate.load(), prompts_of(bench), pictures, measurer.drift).run()


def prompts_of(bench: Bench) -> list[str]:
    """The prompts of the sweep: those asked for, or the run's own, then held-out captions."""
    if bench.options.prompts:
        return list(dict.fromkeys(bench.options.prompts))
    pictures = bench.held_out or bench.trained
    assert pictures is not None
    own = bench.studio.config.validation.validation_prompt
    captions = pictures.evenly(PROMPTS).prompts
    return [*dict.fromkeys(text for text in (*own, *captions) if text)][:PROMPTS] or [""]


def _recommended(
    bench: Bench, by_rank: Sequence[Measured], points: Sequence[Point]
) -> dict[str, Any]:
    """The sweep and what it recommends; nothing of either where everything diverged."""
    if not points:
        return {}
    moved = [point for point in points if point.strength > 0] or list(points)
    best = moved[ranking.ranked([point.contender for point in moved])[0]]
    candidate = by_rank[0].candidate
    which = {"step": candidate.step, "kind": candidate.kind}
    return {
        "sweep": {**which, "points": [point.as_json() for point in points]},
        "recommendation": {
            **which,
            "strength": best.strength,
            "artifact": candidate.path.name,
            "reason": reason_of(by_rank, best, bench),
        },
        "grids": [
            {
                "title": "Prompts at strengths",
                "file": GRID,
                "alt": f"Pictures of {len(points[0].drawn.prompts)} prompts in rows, at strengths "
                f"{', '.join(f'{point.strength:g}' for point in points)} in columns",
            }
        ],
    }


def _pictures(measurer: Measurer, found: Sequence[Measured]) -> list[dict[str, Any]]:
    """Each picture over the checkpoints, the one with the least gain at the end first."""
    raw = [it for it in found if it.candidate.kind == "raw"] or list(found)
    rows = []
    for split, pictures in measurer.pictures.items():
        if pictures is None:
            continue
        losses = [
            (it.candidate.step, it.held_out if split == "heldout" else it.trained) for it in raw
        ]
        for number, (name, prompt) in enumerate(zip(pictures.names, pictures.prompts, strict=True)):
            by_step = {
                str(step): {"loss": float(of.now[number].mean()), "gain": float(of.gains[number])}
                for step, of in losses
                if of is not None
            }
            base = next(float(of.base[number].mean()) for _, of in losses if of is not None)
            row = {"name": name, "caption": prompt, "split": split, "base_loss": base}
            rows.append({**row, "by_step": by_step})
    return sorted(rows, key=_last_gain)


def _last_gain(row: dict[str, Any]) -> float:
    gain = list(row["by_step"].values())[-1]["gain"]
    return -torch.inf if math.isnan(gain) else gain


def _versions() -> dict[str, str]:
    torch_version, _, _ = str(torch.__version__).partition("+")
    return {"hn": __version__, "torch": torch_version, "diffusers": diffusers.__version__}


def finite(value: Any) -> Any:
    """The same without what is not a finite number: the keys of such are absent."""
    if isinstance(value, dict):
        kept = {key: finite(it) for key, it in value.items()}
        return {key: it for key, it in kept.items() if it is not None}
    if isinstance(value, list):
        return [finite(it) for it in value]
    return None if isinstance(value, float) and not -torch.inf < value < torch.inf else value
