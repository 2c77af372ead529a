"""What is learnt from: noisy latents, and what is to be read off them.

`alphas_cumprod` (T,) is the share of signal left at each timestep, from the base model's scheduler.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hn import rng
from hn.config import ObjectiveConfig
from hn.diffusion.objective.losses import huber_bounds, loss_per_sample
from hn.diffusion.objective.noise import sample_noise
from hn.diffusion.objective.timesteps import sample_timesteps, strata
from hn.diffusion.objective.weights import Prediction, timestep_weights
from hn.diffusion.transfer import send
from hn.errors import OptionError

Scales = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Noised:
    """A problem to learn from: `noisy`, `target` (B, C, h, w), `timesteps`, `weights` (B,).

    `bounds` (B,): of a robust loss, where it turns from squared to linear. `loss_weights`
    (B, 1, h, w) say how much each place counts; None: all the same.
    """

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    weights: Tensor
    bounds: Tensor | None = None
    loss_weights: Tensor | None = None

    def to(self, device: torch.device) -> "Noised":
        """The same on a device."""
        if self.noisy.device == device:
            return self
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: send(tensor, device) for name, tensor in tensors.items() if tensor is not None
        }
        return Noised(**moved)


def check_range(config: ObjectiveConfig, count: int) -> None:
    """Raises `OptionError` for timesteps that a base model with so many does not have."""
    if config.timestep_range and config.timestep_range[1] > count:
        raise OptionError(
            f"timestep_range {' '.join(map(str, config.timestep_range))} ends behind the last "
            f"timestep: this base model has 0 to {count - 1}, so the end is at most {count}"
        )


class Objective:
    """Draws problems, and judges predictions, as its settings say.

    Every draw is a function of `seed`, the step, and the slot in the `global_batch`. Raises
    `OptionError` for timesteps that the base model does not have.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        alphas_cumprod: Tensor,
        prediction: Prediction,
        *,
        seed: int = 0,
        global_batch: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        count = len(alphas_cumprod)
        check_range(config, count)
        self._config = config
        self._signal, self._rest = scales_at(torch.arange(count), alphas_cumprod)
        self._prediction: Prediction = prediction
        self._seed = seed
        self._global_batch = global_batch
        self._device = torch.device(device)
        self._weights = timestep_weights(alphas_cumprod, prediction, config)  # (T,)
        robust = config.loss_type in ("huber", "smooth_l1")
        schedule = config.huber_schedule
        self._bounds = huber_bounds(alphas_cumprod, config.huber_c, schedule) if robust else None

    def draw(
        self, latents: Tensor, step: int, slots: list[int], loss_weights: Tensor | None = None
    ) -> Noised:
        """The problem of latents (B, C, h, w) in these slots of the step, on the device.

        It is drawn on the CPU, so that every device learns from the same numbers.
        """
        config = self._config
        generators = [rng.generator(self._seed, "noise", step, slot) for slot in slots]
        noise = sample_noise(
            tuple(latents.shape[1:]),
            generators,
            config.noise_offset,
            config.multires_noise_iterations,
            config.multires_noise_discount,
        )
        timesteps = sample_timesteps(
            len(self._weights), generators, config, self._strata(step, slots)
        )
        added = noise
        if config.input_perturbation:
            # What is added is off by a little that is not to be predicted (arXiv 2301.11706).
            off = sample_noise(tuple(latents.shape[1:]), generators)
            added = noise + config.input_perturbation * off
        scales = self._signal[timesteps], self._rest[timesteps]
        return Noised(
            noisy=add_noise(latents, added, scales),
            timesteps=timesteps,
            target=target(latents, noise, scales, self._prediction),
            weights=self._weights[timesteps],
            bounds=None if self._bounds is None else self._bounds[timesteps],
            loss_weights=loss_weights,
        ).to(self._device)

    def loss(self, prediction: Tensor, problem: Noised, residual: Tensor) -> Tensor:
        """The loss of a micro-batch: the mean over its samples, each times its weight.

        To it comes the penalty on the `residual`, the mean squared residual ratio (a scalar).
        """
        losses = loss_per_sample(
            prediction,
            problem.target,
            problem.loss_weights,
            loss_type=self._config.loss_type,
            bounds=problem.bounds,
        )
        loss = (losses * problem.weights).mean()
        penalty = self._config.residual_penalty
        return loss + penalty * residual if penalty else loss

    def _strata(self, step: int, slots: list[int]) -> Tensor | None:
        """The places of these slots among all of the step, if they are to be spread evenly."""
        if not self._config.stratified_timesteps:
            return None
        generator = rng.generator(self._seed, "strata", step)
        offset = torch.rand((), generator=generator, dtype=torch.double)
        return strata(float(offset), slots, self._global_batch)


def scales_at(timesteps: Tensor, alphas_cumprod: Tensor) -> Scales:
    """The factors (B, 1, 1, 1) of signal and noise: sqrt(a) and sqrt(1 - a)."""
    share = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return share.sqrt(), (1 - share).sqrt()


def add_noise(latents: Tensor, noise: Tensor, scales: Scales) -> Tensor:
    """Noisy latents (B, C, h, w): sqrt(a) * latents + sqrt(1 - a) * noise."""
    signal, rest = scales
    return signal * latents + rest * noise


def target(latents: Tensor, noise: Tensor, scales: Scales, prediction: Prediction) -> Tensor:
    """Target (B, C, h, w): the noise, or the velocity sqrt(a) * noise - sqrt(1-a) * latents."""
    if prediction == "epsilon":
        return noise
    signal, rest = scales
    return signal * noise - rest * latents
