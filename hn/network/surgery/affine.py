"""Linear hypernetworks as what they are, however deep: one matrix and one bias, in float64."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Self

import torch
from torch import Tensor, nn

from hn.errors import ModelError, shown
from hn.network.module import Hypernetwork, HypernetworkModule, Sides, Stack

WIDE = torch.float64


@dataclass(frozen=True)
class Affine:
    """x -> weight x + bias, with `weight` (D, D) and `bias` (D,)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def identity(cls, dim: int) -> Self:
        """What changes nothing."""
        return cls(torch.eye(dim, dtype=WIDE), torch.zeros(dim, dtype=WIDE))

    @classmethod
    def zero(cls, dim: int) -> Self:
        """What gives nothing, whatever it is given."""
        return cls(torch.zeros(dim, dim, dtype=WIDE), torch.zeros(dim, dtype=WIDE))

    def after(self, first: "Affine") -> "Affine":
        """The one applied to what `first` gives."""
        return Affine(self.weight @ first.weight, self.weight @ first.bias + self.bias)

    def plus(self, other: "Affine", factor: float = 1.0) -> "Affine":
        """The sum with `factor` times another."""
        return Affine(self.weight + factor * other.weight, self.bias + factor * other.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to contexts (..., D)."""
        return x @ self.weight.T + self.bias


def check_linear(nets: Sequence[Hypernetwork], act: str, remedy: str) -> None:
    """Refuse what is no matrix. Raises `ModelError` naming `act` and the `remedy`."""
    for net in nets:
        if not is_linear(net):
            raise ModelError(
                f"{name_of(net)} {why_not_linear(net)}, so it is no matrix, and {act} would not be "
                f"exact. {remedy}"
            )


def is_linear(net: Hypernetwork) -> bool:
    """Whether every module is a matrix and a bias: an activation never applied does not count."""
    kinds = (nn.Linear, nn.Dropout)
    return all(isinstance(layer, kinds) for part in net.parts() for layer in part.module.linear)


def why_not_linear(net: Hypernetwork) -> str:
    """What of a hypernetwork is curved, in words."""
    if net.config.is_layer_norm:
        return "has layer norm"
    return f"has the activation {shown(net.config.activation_func)}"


def name_of(net: Hypernetwork) -> str:
    """What to call a hypernetwork in a message."""
    return net.provenance.name or "the hypernetwork"


@torch.no_grad()
def change_of(module: HypernetworkModule, dim: int) -> Affine:
    """What a linear module adds to a context; one without layers adds the context itself."""
    linears = [layer for layer in module.linear if isinstance(layer, nn.Linear)]
    steps = [Affine(layer.weight.cpu().to(WIDE), layer.bias.cpu().to(WIDE)) for layer in linears]
    return reduce(lambda first, then: then.after(first), steps, Affine.identity(dim))


def affine_of(stack: Stack, dim: int, side: str) -> Affine:
    """What a stack of linear ones makes of contexts of a width, the residual included."""
    total = Affine.identity(dim)
    for net, strength in stack:
        module = net.pair(dim).get(side)
        if module is not None:
            change = change_of(module, dim)
            total = Affine.identity(dim).plus(change, strength_of(strength, side)).after(total)
    return total


def strength_of(strength: Sides, side: str) -> float:
    """The strength on a side."""
    return float(strength["kv".index(side)] if isinstance(strength, tuple) else strength)
