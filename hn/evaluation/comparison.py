"""Recipes side by side: what each learnt of held-out pictures, and what else it changed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from torch import Tensor

from hn.evaluation.bench import Bench
from hn.evaluation.drift import PROMPTS, Drift
from hn.evaluation.lora import predictor
from hn.evaluation.measured import Losses

COLUMNS = ("recipe", "what", "held-out gain", "drift", "MiB", "seconds")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One training: `gain` of the held-out loss, `drift`, size in bytes, seconds of its steps."""

    recipe: str
    what: str
    gain: float
    drift: float
    size: int
    seconds: float


class Judge:
    """Judges what the UNet reads through; made while it reads through nothing."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._predict = predictor(bench.base)
        self._base_losses = self._losses()
        latents = bench.studio.draw(PROMPTS, 1, "unrelated prompts").latents
        self._drift = Drift(latents, PROMPTS, bench.base, bench.contexts, self._predict, bench.seed)

    def gain_and_drift(self) -> tuple[float, float]:
        """Both of what is attached or added to the UNet now."""
        gain = Losses(self._losses(), self._base_losses).comparison.gain
        return gain, self._drift.of(self._predict)

    def _losses(self) -> Tensor:
        assert self._bench.held_out is not None
        return self._bench.losses(self._bench.held_out, self._predict, "held-out loss")


def table(results: Sequence[Result]) -> str:
    """Markdown: a row for each recipe, mean and standard deviation over its seeds."""
    rows = dict.fromkeys((it.recipe, it.what) for it in results)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    for row in rows:
        own = [it for it in results if (it.recipe, it.what) == row]
        cells = [
            *row,
            _spread(own, lambda it: it.gain, 3),
            _spread(own, lambda it: it.drift, 3),
            f"{own[0].size / 2**20:.2f}",
            _spread(own, lambda it: it.seconds, 0),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(results: Sequence[Result], of: Callable[[Result], float], digits: int) -> str:
    """Mean, and standard deviation where there are several."""
    values = [of(result) for result in results]
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
