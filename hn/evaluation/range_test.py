"""Which learning rate: it rises from step to step, and the loss says when it is high enough, and
when it is too high (the range test of arXiv 1506.01186).

The loss is that of the same pictures, noise and timesteps every time, so that what changes it is
the rate alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from hn.evaluation.report.html import document
from hn.evaluation.report.markup import element
from hn.evaluation.report.plots import Plot, Series, figure

LOWEST, HIGHEST = 1e-6, 1e-1
EVERY = 4  # steps between measurements
WORSE = 1.5  # so much of the first loss is the end: it diverges


@dataclass(frozen=True)
class Reading:
    """The loss after steps that ended with this rate."""

    rate: float
    loss: float


@dataclass(frozen=True)
class Found:
    """The readings, and the rate to take; None where the loss never fell."""

    readings: Sequence[Reading]
    suggestion: float | None

    def __str__(self) -> str:
        if self.suggestion is None:
            return "no rate made the loss fall: look at pictures, captions and base model"
        lowest = min(self.readings, key=lambda it: it.loss)
        return (
            f"learning_rate {self.suggestion:.1e} is where the loss falls fastest; it is lowest at "
            f"{lowest.rate:.1e}, which is too high to stay at"
        )

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"suggestion": self.suggestion, "readings": [asdict(it) for it in self.readings]}

    def page(self, name: str) -> str:
        """The curve as a page that needs nothing else."""
        points = [(it.rate, it.loss) for it in self.readings]
        at = None if self.suggestion is None else (self.suggestion, f"{self.suggestion:.1e}")
        plot = Plot(
            "Loss while the learning rate rises",
            f"{self}.",
            [Series("loss", "main", points)],
            "learning rate",
            x_at=at,
            may_be_log=False,
            log_x=True,
        )
        title = f"{name}: learning rate"
        return document(title, element("main", element("h1", title), figure(plot)))


def ramp(step: int, steps: int) -> float:
    """The rate of a step: from `LOWEST` at the first to `HIGHEST` at the last, by equal factors."""
    return LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1))


def read(steps: Iterable[int], count: int, measure: Callable[[], float]) -> Found:
    """Take `count` steps at the rates of `ramp`, and measure now and then, till it diverges."""
    readings = [Reading(LOWEST, measure())]
    first = readings[0].loss
    bar = tqdm(zip(range(count), steps, strict=False), "learning rate", count, unit="step")
    for step, _ in bar:
        if (step + 1) % EVERY and step + 1 < count:
            continue
        loss = measure()
        if not loss <= WORSE * first:  # nor a number
            bar.close()
            break
        readings.append(Reading(ramp(step, count), loss))
    return Found(readings, steepest(readings))


def steepest(readings: Sequence[Reading]) -> float | None:
    """The rate around which the loss falls fastest per decade of the rate; None: it never does."""
    slopes = [
        ((after.loss - before.loss) / math.log10(after.rate / before.rate), it.rate)
        for before, it, after in zip(readings, readings[1:], readings[2:], strict=False)
    ]
    slope, rate = min(slopes, default=(0.0, 0.0))
    return rate if slope < 0 else None
