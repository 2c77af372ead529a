"""One checkpoint at several strengths: what each brings, and what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hn.diffusion.pipeline import grid
from hn.evaluation import style
from hn.evaluation.agreement import agreement, errors
from hn.evaluation.bench import Bench
from hn.evaluation.drawing import Drawn
from hn.evaluation.drift import Drift
from hn.evaluation.embedding import Clip, Dino
from hn.evaluation.measured import Losses
from hn.evaluation.memorisation import of_one_size
from hn.evaluation.paired import Pictures
from hn.evaluation.ranking import Contender
from hn.network.module import Hypernetwork

SHOWN = 6  # prompts of the grid


@dataclass(frozen=True)
class Point:
    """What was found at a strength; `numbers` by the names of the report."""

    strength: float
    losses: Losses
    drawn: Drawn
    numbers: dict[str, float]

    @property
    def contender(self) -> Contender:
        """It, as the ranking sees it."""
        gain, means = self.losses.comparison.gain, self.losses.now.mean(1)
        return Contender(gain, means, self.numbers["drift"], self.strength)

    def as_json(self) -> dict[str, Any]:
        """As the report has it."""
        held_out = self.losses.comparison.as_json()
        return {"strength": self.strength, "heldout": held_out, **self.numbers}


class Sweep:
    """Measures a hypernetwork at strengths, on the pictures that the checkpoints were ranked by."""

    def __init__(
        self, bench: Bench, net: Hypernetwork, prompts: Sequence[str], pictures: Pictures,
        drift: Drift,
    ) -> None:  # fmt: skip
        self._bench = bench
        self._net = net
        self._prompts = list(prompts)
        self._pictures = pictures
        self._drift = drift
        self._trained = _style_set(bench)
        options, device = bench.options, bench.base.device
        self._clip = Clip(options.clip_model, device) if options.clip_model else None
        dino, trained = options.dino_model, self._trained
        self._dino = Dino(dino, bench.base, trained) if dino and trained is not None else None
        self._start: Point | None = None

    def run(self) -> list[Point]:
        """The points by strength; 0 is always one of them, and what the others are measured by."""
        strengths = sorted({0.0, *self._bench.options.strengths})
        return [self._point(it) for it in tqdm(strengths, "strengths", unit="strength")]

    def _point(self, strength: float) -> Point:
        bench = self._bench
        with bench.reading(self._net, strength) as predict:
            drawn = bench.studio.draw(self._prompts, bench.options.seeds)
            now = bench.losses(self._pictures, predict, "losses")
            drift = self._drift.of(predict)
        base = now if self._start is None else self._start.losses.base
        point = Point(strength, Losses(now, base), drawn, {"drift": drift})
        self._start = self._start or point
        point.numbers.update(self._looks(drawn, self._start.drawn))
        return point

    def _looks(self, drawn: Drawn, before: Drawn) -> dict[str, float]:
        """What the pictures show, compared with those of the base model."""
        found = {}
        if self._trained is not None:
            from_start = style.frechet(before.latents, self._trained)
            found["style"] = style.way(style.frechet(drawn.latents, self._trained), from_start)
        if len(self._prompts) > 1:
            found["agreement"] = agreement(self._errors(drawn.latents), drawn.prompt_of)
        if drawn.seeds > 1:
            usual = style.spread(before.latents, drawn.seeds)
            found["diversity"] = style.spread(drawn.latents, drawn.seeds) / usual
        if self._clip is not None:
            asked = [self._prompts[number] for number in drawn.prompt_of]
            found["clip"] = self._clip.agreement(drawn.pictures, asked)
        if self._dino is not None:
            found["dino"] = self._dino.likeness(drawn.pictures)
        return found

    def _errors(self, latents: Tensor) -> Tensor:
        """Of each picture with each prompt, by the base model."""
        bench = self._bench
        with bench.reading(self._net, 0.0) as base:
            return errors(latents, self._prompts, bench.base, bench.contexts, base, bench.seed)


def show(points: Sequence[Point]) -> Image.Image:
    """A grid of prompts by strengths, the first picture of each."""
    drawn = [point.drawn for point in points]
    rows = [
        [each.pictures[number * each.seeds] for each in drawn]
        for number in range(min(SHOWN, len(drawn[0].prompts)))
    ]
    labels = [f"strength {point.strength:g}" for point in points]
    return grid(rows, drawn[0].prompts[: len(rows)], labels)


def _style_set(bench: Bench) -> Tensor | None:
    """The latents whose style is to be reached."""
    if bench.trained is None:
        return None
    return of_one_size(bench.trained.latents, bench.latent_size)
