"""Which checkpoint, and which strength.

The most gain on held-out pictures wins. Of those that are neither better nor worse beyond doubt
(paired, on the same draws) and within 1 % of that gain, the one that moves unrelated prompts least
does: it has the same to give at a lower price.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hn.evaluation.intervals import of_mean

DIVERGED, MEMORISING, OVERFITTING = "diverged", "memorising", "overfitting"
NEAR = 0.01  # of the best gain
GAP = 0.1  # between the gains of training and held-out pictures


@dataclass(frozen=True)
class Contender:
    """What competes: the gain, the losses of the pictures (N,) behind it, the drift.

    `order` breaks ties: the step of a checkpoint, the strength of a point.
    """

    gain: float
    losses: Tensor
    drift: float
    order: float
    flags: list[str] = field(default_factory=list)


def ranked(contenders: Sequence[Contender]) -> list[int]:
    """The numbers of the contenders, best first; diverged ones last, memorising ones before."""
    by_gain = sorted(range(len(contenders)), key=lambda it: _place(contenders[it]))
    found: list[int] = []
    for tier in range(3):
        rows = [row for row in by_gain if _tier(contenders[row]) == tier]
        equal = [row for row in rows if is_as_good(contenders[row], contenders[rows[0]])]
        equal.sort(key=lambda it: (contenders[it].drift, contenders[it].order))
        found += [*equal, *(row for row in rows if row not in equal)]
    return found


def is_as_good(one: Contender, best: Contender) -> bool:
    """Whether nothing says that `one` is worse than the `best`, and it is near enough."""
    if one is best:
        return True
    if not one.losses.isfinite().all():
        return False
    worse = of_mean(one.losses - best.losses)
    return worse.low <= 0 and one.gain >= best.gain - NEAR * abs(best.gain)


def is_diverged(losses: Tensor, base_losses: Tensor) -> bool:
    """Whether losses (N, D) are not finite, or above those of the base model."""
    return not bool(losses.isfinite().all()) or float(losses.mean()) > float(base_losses.mean())


def is_lost(now: Contender, before: Contender) -> bool:
    """Whether over half of an earlier gain is gone, beyond doubt: what was learnt is destroyed.

    Where pictures are far from all that the base model draws, noise is nearer to them than it is: a
    loss below its own proves little.
    """
    if not (now.losses.isfinite().all() and before.losses.isfinite().all()):
        return False
    return of_mean(now.losses - before.losses).low > 0 and now.gain < before.gain / 2


def gap(train_gains: Tensor, held_out_gains: Tensor) -> tuple[float, float]:
    """The difference of mean gains of training (N,) and held-out (M,) pictures, and its low end.

    Welch's interval with the smaller number's degrees of freedom, which errs to the wide side.
    """
    sides = [of_mean(train_gains), of_mean(held_out_gains)]
    mean = sides[0].mean - sides[1].mean
    error = torch.tensor([side.error for side in sides]).square().sum().sqrt()
    return mean, mean - max(side.width for side in sides) * float(error)


def _tier(contender: Contender) -> int:
    return 2 if DIVERGED in contender.flags else int(MEMORISING in contender.flags)


def _place(contender: Contender) -> tuple[float, float]:
    worst = math.isnan(contender.gain)
    return math.inf if worst else -contender.gain, contender.order
