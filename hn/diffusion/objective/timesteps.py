"""Which timesteps are learnt, and how often."""

import torch
from torch import Generator, Tensor

from hn.config import ObjectiveConfig


def sample_timesteps(
    count: int,
    generators: list[Generator],
    config: ObjectiveConfig | None = None,
    strata: Tensor | None = None,
) -> Tensor:
    """Timesteps (B,) in 0..count-1, or in the configured range (its end left out).

    One generator for each sample; `strata` (B,) in [0, 1) are used instead of what they would draw.
    logit_normal: the sigmoid of a normal number is the place in the range (https://arxiv.org/abs/2403.03206),
    so that the middle is learnt more often than the ends.
    """
    config = config or ObjectiveConfig()
    low, high = config.timestep_range or (0, count)
    uniform = config.timestep_sampling == "uniform"
    if strata is None and uniform:
        draws = [torch.randint(low, high, (1,), generator=generator) for generator in generators]
        return torch.cat(draws)
    places = strata
    if places is None:
        draws = [torch.rand(1, generator=each, dtype=torch.double) for each in generators]
        places = torch.cat(draws)
    if not uniform:
        normal = config.logit_mean + config.logit_std * torch.special.ndtri(places)
        places = normal.sigmoid()
    return (low + (places * (high - low)).long()).clamp(max=high - 1)


def strata(offset: float, slots: list[int], global_batch: int) -> Tensor:
    """Places (B,) in [0, 1), evenly spread over the global batch from an offset common to it.

    A uniform offset makes each of them uniform (https://arxiv.org/abs/2107.00630).
    """
    return (offset + torch.tensor(slots, dtype=torch.double) / global_batch) % 1.0
