"""How far a prediction is from its target: squared, or less for what lies far off."""

import math
from typing import Literal

import torch
from torch import Tensor

LossType = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]


def loss_per_sample(
    prediction: Tensor,
    target: Tensor,
    loss_weights: Tensor | None = None,
    *,
    loss_type: LossType = "l2",
    bounds: Tensor | None = None,
) -> Tensor:
    """The mean distance (B,) in float32, of each place times its weight (B, 1, h, w).

    `bounds` (B,): where the distances of `huber` and `smooth_l1` turn from squared to linear.
    """
    error = _distance(prediction.float() - target.float(), loss_type, bounds)
    if loss_weights is not None:
        error = error * loss_weights
    return error.flatten(1).mean(1)


def huber_bounds(alphas_cumprod: Tensor, huber_c: float, schedule: HuberSchedule) -> Tensor:
    """The bound (T,) of every timestep, https://arxiv.org/abs/2403.16728.

    exponential: from 1 at the first timestep to `huber_c` behind the last. snr: from 1 without
    noise to `huber_c` without signal. So little noise is learnt almost as with l2, and the robust
    distance is kept for where the picture is vague.
    """
    count = len(alphas_cumprod)
    alphas = alphas_cumprod.double()
    if schedule == "constant":
        bounds = torch.full_like(alphas, huber_c)
    elif schedule == "exponential":
        bounds = torch.exp(math.log(huber_c) * torch.arange(count, dtype=torch.double) / count)
    else:
        sigmas = ((1 - alphas) / alphas).sqrt()  # noise to signal
        bounds = (1 - huber_c) / (1 + sigmas).square() + huber_c
    return bounds.float()


def _distance(error: Tensor, loss_type: LossType, bounds: Tensor | None) -> Tensor:
    """The distance (B, C, h, w) of each place.

    Both robust ones are pseudo-Huber, 2 * factor * (sqrt(error^2 + c^2) - c): of `huber` the factor
    is c, so that small errors count as with l2; of `smooth_l1` it is 1, so that large ones count
    twice as with l1 (the kinds and scales that users of kohya's scripts know).
    """
    if loss_type == "l2":
        return error.square()
    if loss_type == "l1":
        return error.abs()
    assert bounds is not None
    c = bounds.view(-1, 1, 1, 1)
    # sqrt(e^2 + c^2) - c, without the difference of two near numbers
    squared = error.square()
    distance = 2 * squared / ((squared + c.square()).sqrt() + c)
    return distance * c if loss_type == "huber" else distance
