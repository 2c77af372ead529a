"""The held-out loss: pictures that were not trained on, with and without the hypernetwork, on the
same noise.

The same picture, noise and timestep on both sides: what is left of the difference is the
hypernetwork.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from hn import rng
from hn.config import Config
from hn.data.cache.contexts import Contexts
from hn.diffusion import objective
from hn.diffusion.base_model import BaseModel
from hn.diffusion.denoiser import Condition, Denoiser
from hn.training.checkpoint import TrainingState
from hn.training.reporter import Reporter

DRAWS = 4  # timesteps per picture, one from each quarter of the schedule
BATCH = 8


@dataclass(frozen=True)
class Comparison:
    """Mean losses on the same draws, and the standard error of their paired difference."""

    loss: float
    base_loss: float
    difference_error: float

    @property
    def gain(self) -> float:
        """How much of the base model's loss is gone: 0 is no better, negative is worse."""
        return 1 - self.loss / self.base_loss

    def __str__(self) -> str:
        error = f"\u00b1 {self.difference_error:.4f}"
        return f"{self.loss:.4f}, base model {self.base_loss:.4f} ({error} between them)"


@dataclass(frozen=True)
class Pictures:
    """Held-out pictures; their loss is weighted as in training, so by their alpha if that is."""

    latents: list[Tensor]  # N times (C, h, w)
    loss_weights: list[Tensor] | None  # N times (1, h, w)
    prompts: list[str]
    contexts: Contexts

    def batches(self) -> Iterator[list[int]]:
        """Rows to measure at once: each picture makes `DRAWS`, and those at once have one size."""
        by_size: dict[torch.Size, list[int]] = {}
        for picture, latents in enumerate(self.latents):
            rows = range(picture * DRAWS, (picture + 1) * DRAWS)
            by_size.setdefault(latents.shape, []).extend(rows)
        for rows in by_size.values():
            yield from (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))


class Heldout:
    """Measures when it is due, on the main process, with fixed noise and timesteps.

    Without `pictures` it measures nothing.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        base: BaseModel,
        denoiser: Denoiser,
        pictures: Pictures | None,
        config: Config,
        reporter: Reporter,
    ) -> None:
        self._pictures = pictures if accelerator.is_main_process else None
        self._seed = config.training.seed
        self._base = base
        self._denoiser = denoiser
        self._reporter = reporter
        self._every = config.validation.validation_steps
        self._measured_step = -1
        self._base_losses: Tensor | None = None
        self.last: dict[str, Comparison] = {}  # by the name of the view

    def __call__(self, state: TrainingState) -> None:
        """Measure if this step is due."""
        if self._every and state.step % self._every == 0:
            self.measure(state)

    def measure(self, state: TrainingState) -> None:
        """Compare strength 1 with strength 0 and report it, unless this step was measured.

        An average of the weights is measured beside them, on the same draws.
        """
        if self._pictures is None or self._measured_step == state.step:
            return
        self._measured_step = state.step
        if self._base_losses is None:
            self._base_losses = self._losses(self._pictures, 0.0)
        values = {"heldout_base_loss": float(self._base_losses.mean())}
        for view in state.averages:
            with view.applied():
                losses = self._losses(self._pictures, 1.0)
            found = _compare(losses, self._base_losses)
            stem = f"heldout{view.tail}".replace("-", "_")
            values |= {
                f"{stem}_loss": found.loss,
                f"{stem}_gain": found.gain,
                f"{stem}_difference_error": found.difference_error,
            }
            self.last[view.name] = found
        self._reporter.scalars(values, state.step)

    @torch.no_grad()
    def _losses(self, pictures: Pictures, strength: float) -> Tensor:
        """The loss (N * DRAWS,) of every draw."""
        losses = torch.empty(len(pictures.latents) * DRAWS)
        with self._denoiser.attachment.at_strength(strength):
            for rows in tqdm([*pictures.batches()], "held-out loss", leave=False):
                losses[rows] = self._measure(pictures, rows)
        return losses

    def _measure(self, pictures: Pictures, rows: list[int]) -> Tensor:
        """The loss (B,) of these draws, each with noise of its own and from its part of the
        timesteps.
        """
        alphas, device = self._base.alphas_cumprod, self._base.device
        numbers = [row // DRAWS for row in rows]
        latents = torch.stack([pictures.latents[number] for number in numbers])
        generators = [rng.generator(self._seed, "heldout", row) for row in rows]
        noise = objective.sample_noise(tuple(latents.shape[1:]), generators)
        part = len(alphas) // DRAWS
        within = objective.sample_timesteps(part, generators)
        timesteps = within + torch.tensor(rows) % DRAWS * part
        noisy = objective.add_noise(latents, noise, timesteps, alphas)
        target = objective.target(latents, noise, timesteps, alphas, self._base.prediction)
        condition = Condition(pictures.contexts.stack([pictures.prompts[it] for it in numbers]))
        prediction, _ = self._denoiser(noisy.to(device), timesteps.to(device), condition)
        weights = pictures.loss_weights
        chosen = None if weights is None else torch.stack([weights[it] for it in numbers])
        return objective.loss_per_sample(prediction.cpu(), target, chosen)


def _compare(losses: Tensor, base_losses: Tensor) -> Comparison:
    """Of losses (N * DRAWS,) on the same draws."""
    difference = losses - base_losses
    error = float(difference.std() / len(difference) ** 0.5)
    return Comparison(float(losses.mean()), float(base_losses.mean()), error)
