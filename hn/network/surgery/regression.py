"""Matrices of low rank that stand for what is not linear, by weighted least squares on contexts.

Reduced-rank regression (Izenman 1975): of all matrices M of a rank, the one with the least
E |W y - M x|^2, where y is what a hypernetwork adds to a context x, and W a layer's own weight.
Only moments of x and y are kept, so any number of contexts takes the memory of a few matrices.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hn.network.surgery.affine import WIDE

RIDGE = 1e-5  # of the mean variance of a context: what is seen too rarely stays as it is


@dataclass(frozen=True)
class Side:
    """Sums over contexts x (D,) and what is added to them y (D,), weighted."""

    xy: Tensor  # (D, D)
    yy: Tensor  # (D, D)
    y: Tensor  # (D,)


@dataclass(frozen=True)
class Covariances:
    """Means of products, about zero or about the means; `yx` and `yy` are of W y (E,)."""

    xx: Tensor  # (D, D)
    yx: Tensor  # (E, D)
    yy: float  # its trace


class Moments:
    """Sums over the contexts of a layer, and over what keys and values get added."""

    def __init__(self, dim: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=WIDE, device=device)

        self._count = zeros()
        self._x = zeros(dim)
        self._xx = zeros(dim, dim)
        self._sides = {side: Side(zeros(dim, dim), zeros(dim, dim), zeros(dim)) for side in "kv"}

    def add(self, x: Tensor, added: Mapping[str, Tensor], weights: Tensor) -> None:
        """Take in contexts (N, D), what they get added (N, D) by side, and their weights (N,)."""
        x, weights = x.to(self._x), weights.to(self._x)
        weighted = x * weights[:, None]
        self._count += weights.sum()
        self._x += weighted.sum(0)
        self._xx += weighted.T @ x
        for side, sums in self._sides.items():
            y = added[side].to(self._x)
            scaled = y * weights[:, None]
            sums.xy.add_(weighted.T @ y)
            sums.yy.add_(scaled.T @ y)
            sums.y.add_(scaled.sum(0))

    def of(self, side: str, weight: Tensor) -> Covariances:
        """The covariances of a side, seen through a layer's weight W (E, D), on the CPU.

        Of keys about their means, since what all keys of a layer get alike cancels in the softmax.
        """
        count, sums = self._count.cpu(), self._sides[side]
        xx, xy, yy = ((it / self._count).cpu() for it in (self._xx, sums.xy, sums.yy))
        if side == "k":
            x, y = (self._x.cpu() / count), (sums.y.cpu() / count)
            xx, xy, yy = xx - x.outer(x), xy - x.outer(y), yy - y.outer(y)
        weight = weight.detach().cpu().to(WIDE)
        return Covariances(xx, weight @ xy.T, float(((weight @ yy) * weight).sum()))


@dataclass(frozen=True)
class Factors:
    """A matrix of low rank: `up` (E, R) times `down` (R, D)."""

    up: Tensor
    down: Tensor

    @property
    def matrix(self) -> Tensor:
        """Their product (E, D)."""
        return self.up @ self.down


def fit(seen: Covariances, rank: int) -> Factors:
    """The best matrix of that rank, for what was seen."""
    dim = len(seen.xx)
    ridge = RIDGE * float(seen.xx.diagonal().mean())
    system = seen.xx + ridge * torch.eye(dim, dtype=WIDE)
    whole = torch.linalg.solve(system, seen.yx.T).T  # (E, D)
    _, vectors = torch.linalg.eigh(whole @ system @ whole.T)  # ascending
    up = vectors[:, -min(rank, dim) :]
    return Factors(up, up.T @ whole)


def truncate(matrix: Tensor, rank: int) -> tuple[Factors, float]:
    """The nearest matrix of that rank (Eckart and Young 1936), and its squared distance."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:rank].sqrt()
    factors = Factors(left[:, :rank] * roots, roots[:, None] * right[:rank])
    return factors, float(values[rank:].square().sum())


def residual(of: Covariances, factors: Factors) -> float:
    """What is left of E |W y|^2 (`of.yy`) after M x is taken from it."""
    matrix = factors.matrix
    crossed = float((matrix * of.yx).sum())
    own = float(((matrix @ of.xx) * matrix).sum())
    return max(0.0, of.yy - 2 * crossed + own)
