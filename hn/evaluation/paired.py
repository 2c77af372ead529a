"""The loss of pictures with and without a hypernetwork, on the same noise and timesteps.

The same picture, noise and timestep on both sides: what is left of the difference is the
hypernetwork. A picture is drawn `draws` times, once from each of as many parts of the timesteps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from tqdm import tqdm

from hn import rng
from hn.data.cache.contexts import Contexts
from hn.diffusion import objective
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.inpainting import blanks
from hn.diffusion.conditions.views import View
from hn.evaluation.intervals import Interval, of_mean

BANDS = 4  # parts of the timesteps that are reported apart
DRAWS = 4  # timesteps per picture; a multiple of BANDS
BATCH = 8
Predict = Callable[[Tensor, Tensor, Condition], Tensor]
"""From noisy latents (B, C, h, w), timesteps (B,) and a condition to a prediction (B, C, h, w)."""


@dataclass(frozen=True)
class Pictures:
    """Pictures to measure; their loss is weighted as in training, so by their alpha if that is.

    Without `views` they are whole pictures, as they were drawn.
    """

    latents: list[Tensor]  # N times (C, h, w)
    loss_weights: list[Tensor] | None  # N times (1, h, w)
    prompts: list[str]
    names: list[str]
    contexts: Contexts
    views: list[View] | None = None
    canvases: list[Tensor] | Tensor | None = None  # N times (1 + C, h, w), if it is for inpainting

    @classmethod
    def drawn(
        cls, latents: Tensor, prompts: Sequence[str], base: BaseModel, contexts: Contexts
    ) -> Self:
        """Pictures of latents (N, C, h, w) that the base model drew, on blank canvases if on any;
        they are called by their numbers.
        """
        names = [str(number) for number in range(len(latents))]
        canvases = blanks(base, latents)
        return cls(list(latents), None, list(prompts), names, contexts, canvases=canvases)

    def __len__(self) -> int:
        return len(self.latents)

    def batches(self, draws: int) -> Iterator[list[int]]:
        """Rows to measure at once: each picture makes `draws`, and those at once have one size."""
        by_size: dict[torch.Size, list[int]] = {}
        for picture, latents in enumerate(self.latents):
            rows = range(picture * draws, (picture + 1) * draws)
            by_size.setdefault(latents.shape, []).extend(rows)
        for rows in by_size.values():
            yield from (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))

    def view(self, picture: int, downscaling: int) -> View:
        """What is seen of a picture."""
        if self.views is not None:
            return self.views[picture]
        height, width = self.latents[picture].shape[1:]
        return View.whole((width * downscaling, height * downscaling))

    def evenly(self, count: int) -> Self:
        """At most `count` of them, from the first to the last in even steps."""
        last = len(self) - 1
        if count > last:
            return self
        rows = [place * last // max(1, count - 1) for place in range(count)]
        weights, views, canvases = self.loss_weights, self.views, self.canvases
        return replace(
            self,
            latents=[self.latents[row] for row in rows],
            loss_weights=None if weights is None else [weights[row] for row in rows],
            prompts=[self.prompts[row] for row in rows],
            names=[self.names[row] for row in rows],
            views=None if views is None else [views[row] for row in rows],
            canvases=None if canvases is None else [canvases[row] for row in rows],
        )


@torch.no_grad()
def losses(
    pictures: Pictures,
    predict: Predict,
    base: BaseModel,
    seed: int,
    draws: int = DRAWS,
    what: str = "held-out loss",
) -> Tensor:
    """The loss (N, draws) of every draw, with what is attached to the UNet as it is attached now.

    What is drawn depends on the seed, the picture's number and `draws` alone.
    """
    flat = torch.empty(len(pictures) * draws)
    for rows in tqdm([*pictures.batches(draws)], what, leave=False):
        flat[rows] = measure(pictures, rows, draws, predict, base, seed)
    return flat.view(-1, draws)


def measure(
    pictures: Pictures, rows: list[int], draws: int, predict: Predict, base: BaseModel, seed: int
) -> Tensor:
    """The loss (B,) of these draws."""
    drawn = draw(pictures, rows, draws, base, seed)
    prediction = predict(drawn.noisy.to(base.device), drawn.timesteps.to(base.device), drawn.of)
    weights = pictures.loss_weights
    chosen = None if weights is None else torch.stack([weights[row // draws] for row in rows])
    return objective.loss_per_sample(prediction.cpu(), drawn.target, chosen)


class Draws(NamedTuple):
    """Noisy latents, their targets (B, C, h, w), timesteps (B,), and what the pictures show."""

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    of: Condition


def draw(pictures: Pictures, rows: list[int], draws: int, base: BaseModel, seed: int) -> Draws:
    """Each with noise of its own and from its part of the timesteps.

    Row `picture * draws + draw` is of that picture.
    """
    numbers = [row // draws for row in rows]
    latents = torch.stack([pictures.latents[number] for number in numbers])
    generators = [rng.generator(seed, "heldout", row) for row in rows]
    noise = objective.sample_noise(tuple(latents.shape[1:]), generators)
    parts = [row % draws for row in rows]
    timesteps = timesteps_of(parts, draws, len(base.alphas_cumprod), generators)
    scales = objective.scales_at(timesteps, base.alphas_cumprod)
    noisy = objective.add_noise(latents, noise, scales)
    target = objective.target(latents, noise, scales, base.prediction)
    views = [pictures.view(number, base.downscaling) for number in numbers]
    condition = pictures.contexts.stack([pictures.prompts[number] for number in numbers], views)
    if pictures.canvases is not None:
        chosen = torch.stack([pictures.canvases[number] for number in numbers])
        condition = replace(condition, canvas=chosen)
    return Draws(noisy, target, timesteps, condition)


def timesteps_of(
    parts: list[int], draws: int, count: int, generators: list[torch.Generator]
) -> Tensor:
    """Timesteps (B,), each uniform in its part of 0..count-1, of which there are `draws`."""
    starts = [part * count // draws for part in parts]
    ends = [(part + 1) * count // draws for part in parts]
    drawn = zip(starts, ends, generators, strict=True)
    return torch.cat(
        [torch.randint(start, end, (1,), generator=generator) for start, end, generator in drawn]
    )


@dataclass(frozen=True)
class Comparison:
    """Mean losses on the same draws, and their paired difference: below 0 is better."""

    loss: float
    base_loss: float
    difference: Interval
    remaining: Interval  # loss / base_loss

    @classmethod
    def of(cls, losses: Tensor, base_losses: Tensor) -> Self:
        """Of the losses (N, D) of the same draws.

        The interval of what remains is that of a ratio of means (Cochran, Sampling Techniques, 6):
        pictures differ a lot in how hard they are for the base model, and much less in the share.
        """
        now, base = losses.double().mean(1), base_losses.double().mean(1)
        ratio = float(now.mean() / base.mean())
        spread = of_mean(now - ratio * base)
        remaining = Interval(ratio, spread.error / float(base.mean()), spread.width)
        return cls(float(now.mean()), float(base.mean()), of_mean(now - base), remaining)

    @property
    def gain(self) -> float:
        """How much of the base model's loss is gone: 0 is no better, negative is worse."""
        return 1 - self.remaining.mean

    def __str__(self) -> str:
        error = f"\u00b1 {self.difference.error:.4f}"
        return f"{self.loss:.4f}, base model {self.base_loss:.4f} ({error} between them)"

    def as_json(self) -> dict[str, Any]:
        """Its numbers, by the names of the report."""
        numbers = {"base_loss": self.base_loss, "loss": self.loss, "gain": self.gain}
        difference = self.difference.as_json()
        return {**numbers, **({"difference": difference} if difference else {})}


def bands(losses: Tensor, base_losses: Tensor) -> list[Comparison]:
    """The comparison of each of `BANDS` parts of the timesteps, the least noisy first.

    The number of draws D of the losses (N, D) must be a multiple of `BANDS`.
    """
    split = zip(losses.chunk(BANDS, 1), base_losses.chunk(BANDS, 1), strict=True)
    return [Comparison.of(*pair) for pair in split]


def edges(timesteps: int) -> list[tuple[int, int]]:
    """Where each band begins, and where the next one does."""
    return [(part * timesteps // BANDS, (part + 1) * timesteps // BANDS) for part in range(BANDS)]


def picture_gains(losses: Tensor, base_losses: Tensor) -> Tensor:
    """The gain (N,) of each picture, of losses (N, D)."""
    return 1 - losses.mean(1) / base_losses.mean(1)
