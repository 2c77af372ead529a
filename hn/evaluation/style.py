"""What pictures look like, in numbers of their latents alone: style and diversity.

The style is the distribution of the latents' channels over all places, by means and covariances:
statistics of colour and contrast. Where things are in a picture does not count.
"""

import torch
from torch import Tensor

from hn.evaluation.memorisation import distances


def frechet(some: Tensor, others: Tensor) -> float:
    """The Fréchet distance between the channels of latents (N, C, h, w) and (M, C, h', w').

    Of Gaussians (Dowson and Landau, 1982): the root of |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^0.5).
    """
    (mean_a, cov_a), (mean_b, cov_b) = moments(some), moments(others)
    root = _root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    squared = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return float(squared.clamp(min=0).sqrt())


def moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C) of the channels over all pictures and places."""
    channels = latents.double().transpose(0, 1).flatten(1)  # (C, N * h * w)
    return channels.mean(1), torch.atleast_2d(torch.cov(channels))


def way(distance: float, from_start: float) -> float:
    """How far of the way is gone where `from_start` was the distance to go: 1 is all of it."""
    return 1 - distance / from_start if from_start else 0.0


def spread(latents: Tensor, seeds: int) -> float:
    """Mean distance between pictures of one prompt, of latents (P * seeds, C, h, w).

    `seeds`, at least 2, is how many pictures each prompt has, one after the other.
    """
    first, second = torch.triu_indices(seeds, seeds, offset=1)
    each = [distances(part, part)[first, second].mean() for part in latents.split(seeds)]
    return float(torch.stack(each).mean())


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a covariance matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
