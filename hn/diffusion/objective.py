"""The training objective: noise, timesteps, target, weights. Pure functions of tensors.

`alphas_cumprod` (T,) is the share of signal left at each timestep, from the base model's scheduler.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Generator, Tensor

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Noised:
    """A problem to learn from: `noisy`, `target` (B, C, h, w), `timesteps`, `weights` (B,).

    `loss_weights` (B, 1, h, w) say how much each place counts; None: all the same.
    """

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    weights: Tensor
    loss_weights: Tensor | None = None

    def to(self, device: torch.device) -> "Noised":
        """The same on another device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name, tensor in tensors.items()
            if tensor is not None
        }
        return Noised(**moved)


def sample_noise(
    shape: tuple[int, ...], generators: list[Generator], noise_offset: float = 0.0
) -> Tensor:
    """Gaussian noise (B, C, h, w), one generator for each sample.

    `noise_offset` adds a constant per sample and channel (https://www.crosslabs.org/blog/diffusion-with-offset-noise),
    so that very dark and very bright pictures can be learnt; 0.05 to 0.1 is usual.
    """
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    if noise_offset:
        offsets = [torch.randn((shape[0], 1, 1), generator=generator) for generator in generators]
        noise = noise + noise_offset * torch.stack(offsets)
    return noise


def sample_timesteps(count: int, generators: list[Generator]) -> Tensor:
    """Timesteps (B,) uniform in 0..count-1, one generator for each sample."""
    return torch.cat([torch.randint(count, (1,), generator=generator) for generator in generators])


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noisy latents (B, C, h, w): sqrt(a) * latents + sqrt(1 - a) * noise."""
    signal, rest = _scales(timesteps, alphas_cumprod)
    return signal * latents + rest * noise


def target(
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    prediction: Prediction,
) -> Tensor:
    """Target (B, C, h, w): the noise, or the velocity sqrt(a) * noise - sqrt(1-a) * latents."""
    if prediction == "epsilon":
        return noise
    signal, rest = _scales(timesteps, alphas_cumprod)
    return signal * noise - rest * latents


def loss_per_sample(
    prediction: Tensor, target: Tensor, loss_weights: Tensor | None = None
) -> Tensor:
    """Mean squared error (B,) in float32, of each place times its weight (B, 1, h, w)."""
    error = (prediction.float() - target.float()).square()
    if loss_weights is not None:
        error = error * loss_weights
    return error.flatten(1).mean(1)


def loss(prediction: Tensor, problem: Noised) -> Tensor:
    """The loss of a micro-batch: the mean over its samples, each times its weight."""
    losses = loss_per_sample(prediction, problem.target, problem.loss_weights)
    return (losses * problem.weights).mean()


def min_snr_weights(
    timesteps: Tensor, alphas_cumprod: Tensor, prediction: Prediction, gamma: float | None
) -> Tensor:
    """Min-SNR weights (B,), https://arxiv.org/abs/2303.09556; ones without a `gamma`.

    The paper weights the error of the clean latents with min(SNR, gamma). An error of epsilon is
    SNR times that one, an error of the velocity SNR + 1 times, hence the two divisors.
    """
    if gamma is None:
        return torch.ones_like(timesteps, dtype=torch.float32)
    share = alphas_cumprod.float()[timesteps]
    snr = share / (1 - share)
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def noised(
    latents: Tensor,
    generators: list[Generator],
    alphas_cumprod: Tensor,
    prediction: Prediction,
    *,
    snr_gamma: float | None = None,
    noise_offset: float = 0.0,
    loss_weights: Tensor | None = None,
) -> Noised:
    """Draw noise and timesteps for latents (B, C, h, w), with a generator for each of them."""
    noise = sample_noise(tuple(latents.shape[1:]), generators, noise_offset)
    timesteps = sample_timesteps(len(alphas_cumprod), generators)
    return Noised(
        noisy=add_noise(latents, noise, timesteps, alphas_cumprod),
        timesteps=timesteps,
        target=target(latents, noise, timesteps, alphas_cumprod, prediction),
        weights=min_snr_weights(timesteps, alphas_cumprod, prediction, snr_gamma),
        loss_weights=loss_weights,
    )


def _scales(timesteps: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (B, 1, 1, 1) of signal and noise."""
    share = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return share.sqrt(), (1 - share).sqrt()
