"""The held-out loss: pictures that were not trained on, with and without the hypernetwork, on the
same noise.

The same picture, noise and timestep on both sides: what is left of the difference is the
hypernetwork.
"""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from hn import rng
from hn.config import Config
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

    latents: Tensor  # (N, C, h, w)
    contexts: Tensor  # (N, T, D)
    loss_weights: Tensor | None  # (N, 1, h, w)


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
        self._active = pictures is not None and accelerator.is_main_process
        self._base = base
        self._denoiser = denoiser
        self._reporter = reporter
        self._every = config.validation.validation_steps
        self._measured_step = -1
        self._base_losses: Tensor | None = None
        self.last: Comparison | None = None
        if pictures is not None:
            self._draw(pictures, config.training.seed)

    def __call__(self, state: TrainingState) -> None:
        """Measure if this step is due."""
        if self._every and state.step % self._every == 0:
            self.measure(state)

    def measure(self, state: TrainingState) -> None:
        """Compare strength 1 with strength 0 and report it, unless this step was measured."""
        if not self._active or self._measured_step == state.step:
            return
        self._measured_step = state.step
        losses = self._losses(1.0)
        if self._base_losses is None:
            self._base_losses = self._losses(0.0)
        difference = losses - self._base_losses
        error = float(difference.std() / len(difference) ** 0.5)
        self.last = Comparison(float(losses.mean()), float(self._base_losses.mean()), error)
        values = {
            "heldout_loss": self.last.loss,
            "heldout_base_loss": self.last.base_loss,
            "heldout_gain": self.last.gain,
            "heldout_difference_error": error,
        }
        self._reporter.scalars(values, state.step)

    def _draw(self, pictures: Pictures, seed: int) -> None:
        """Repeat each picture with noise of its own and timesteps from every part."""
        self._latents = pictures.latents.repeat_interleave(DRAWS, dim=0)
        self._contexts = pictures.contexts.repeat_interleave(DRAWS, dim=0)
        weights = pictures.loss_weights
        self._weights = None if weights is None else weights.repeat_interleave(DRAWS, dim=0)
        generators = [rng.generator(seed, "heldout", row) for row in range(len(self._latents))]
        self._noise = objective.sample_noise(tuple(self._latents.shape[1:]), generators)
        part = len(self._base.alphas_cumprod) // DRAWS
        within = objective.sample_timesteps(part, generators)
        self._timesteps = within + torch.arange(len(within)) % DRAWS * part

    @torch.no_grad()
    def _losses(self, strength: float) -> Tensor:
        """The loss (N * DRAWS,) of every draw."""
        alphas, prediction_type = self._base.alphas_cumprod, self._base.prediction
        device, losses = self._base.device, []
        with self._denoiser.attachment.at_strength(strength):
            for start in tqdm(
                range(0, len(self._latents), BATCH), desc="held-out loss", leave=False
            ):
                rows = slice(start, start + BATCH)
                latents, noise, timesteps = (
                    self._latents[rows],
                    self._noise[rows],
                    self._timesteps[rows],
                )
                noisy = objective.add_noise(latents, noise, timesteps, alphas)
                target = objective.target(latents, noise, timesteps, alphas, prediction_type)
                condition = Condition(self._contexts[rows])
                prediction = self._denoiser(noisy.to(device), timesteps.to(device), condition)
                weights = None if self._weights is None else self._weights[rows]
                losses.append(objective.loss_per_sample(prediction.cpu(), target, weights))
        return torch.cat(losses)
