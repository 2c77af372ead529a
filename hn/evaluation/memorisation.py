"""Whether a hypernetwork gives its training pictures back instead of their style.

Memorised pictures lie nearer to a training picture than other pictures of that kind do (nearest
neighbours in latent space, as in https://arxiv.org/abs/2301.13188). How near those come by chance
is measured: leave one out, of the training pictures and of the held-out ones. Where captions say
almost all that a picture shows, obeying them comes near, too; so what held-out captions make is
held against the held-out pictures, which nothing can have memorised.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hn.evaluation.intervals import share_at_least

CHANCE = 0.05  # the quantile of the baseline below which a picture counts as close


@dataclass(frozen=True)
class Memorisation:
    """Median distances to the `nearest` training picture and, of the `baseline`, to another one.

    `closer`: the share of drawn pictures below the baseline's 5 % quantile; `control`: the same
    share of what held-out captions make, to held-out pictures. `flag`: whether the first is above
    the second, and above 5 %, beyond doubt (95 %, one-sided).
    """

    nearest: float
    baseline: float
    closer: float
    control: float
    flag: bool

    def as_json(self) -> dict[str, Any]:
        """Its numbers, by the names of the report."""
        return asdict(self)


def judge(
    drawn: Tensor, trained: Tensor, drawn_held_out: Tensor | None, held_out: Tensor | None
) -> Memorisation | None:
    """Of pictures drawn from training captions (N, C, h, w) and the training pictures (M, ...).

    None where no baseline can be had: of fewer than two pictures.
    """
    baseline = leave_one_out(trained, held_out)
    if len(baseline) < 2:
        return None
    limit = torch.quantile(baseline, CHANCE)
    nearest = distances(drawn, trained).min(1).values
    control = torch.zeros(1)
    if drawn_held_out is not None and held_out is not None:
        control = distances(drawn_held_out, held_out).min(1).values < limit
    hits, expected = int((nearest < limit).sum()), float(control.float().mean())
    return Memorisation(
        nearest=float(nearest.median()),
        baseline=float(baseline.median()),
        closer=hits / len(nearest),
        control=expected,
        flag=share_at_least(hits, len(nearest)) > max(CHANCE, expected),
    )


def leave_one_out(trained: Tensor, held_out: Tensor | None) -> Tensor:
    """How far each picture is from the nearest other training picture (M or M + H,)."""
    between = distances(trained, trained).fill_diagonal_(torch.inf).min(1).values
    between = between[between.isfinite()]
    if held_out is None:
        return between
    return torch.cat([between, distances(held_out, trained).min(1).values])


def distances(some: Tensor, others: Tensor) -> Tensor:
    """Root mean square differences (N, M) of latents (N, C, h, w) and (M, C, h, w)."""
    apart = torch.cdist(some.flatten(1).double(), others.flatten(1).double())
    return apart / some[0].numel() ** 0.5


def of_one_size(latents: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Latents (N, C, h, w) of any sizes at this one (h, w): those of other buckets are resized."""
    resized = [
        it if it.shape[1:] == size else F.interpolate(it[None], size, mode="area")[0]
        for it in latents
    ]
    return torch.stack(resized)
