"""Hypernetworks as LoRAs: a change of low rank to `to_k` and `to_v` of every attention layer.

What a linear one adds is W A x + W a in each layer: W A has its singular values, W a no place in a
LoRA. For keys nothing is lost by that (it cancels in the softmax), for values it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm import tqdm

from hn.diffusion.attending.places import dims_by_place, place_of
from hn.diffusion.attending.strength import Choices
from hn.diffusion.attention import attention_layers
from hn.diffusion.surgery.folding import Folding, Maps, maps_of
from hn.network.surgery import regression
from hn.network.surgery.affine import WIDE, Affine
from hn.network.surgery.regression import Factors, Moments


@dataclass(frozen=True)
class Share:
    """Of a sum of squares, what is not there any more."""

    lost: float
    total: float

    def __add__(self, other: "Share") -> "Share":
        return Share(self.lost + other.lost, self.total + other.total)

    @property
    def error(self) -> float:
        """Relative, as a root mean square; 0 of nothing."""
        return (self.lost / self.total) ** 0.5 if self.total else 0.0


@dataclass(frozen=True)
class Lora:
    """Factors by the names of the layers' parts, such as `down_blocks. ... attn1.to_k`.

    `shares`: what is lost of what keys and values get added, by width and side. `biases`: of what
    the values get added, the part that is the same for every context and has no place here.
    """

    factors: dict[str, Factors]
    shares: dict[tuple[int, str], Share]
    biases: dict[int, Share]

    @property
    def error(self) -> float:
        """What is lost of all that keys and values get added."""
        return sum(self.shares.values(), Share(0.0, 0.0)).error

    def added(self, unet: Any) -> Folding:
        """Give the UNet this change until it is undone."""
        parts = dict(unet.named_modules())
        return Folding(
            (parts[name].weight, parts[name].weight.cpu().to(WIDE) + factors.matrix)
            for name, factors in self.factors.items()
        )


def of_matrices(unet: Any, stack: Choices, rank: int) -> Lora:
    """The nearest LoRA of a stack of linear hypernetworks. Raises as `hn.fold` does.

    What is lost is counted as for contexts of independent values of size 1.
    """
    available = dims_by_place(attention_layers(unet))
    maps = maps_of(stack, available, "its singular values", "Use --fit contexts.")
    lora = Lora({}, {}, {})
    for name, part, side, dim in _parts(unet, stack):
        change = _change(maps, name, dim, side)
        weight = part.weight.detach().cpu().to(WIDE)
        matrix, constant = weight @ change.weight, weight @ change.bias
        lora.factors[name], lost = regression.truncate(matrix, rank)
        total = float(matrix.square().sum())
        _count(lora.shares, (dim, side), Share(lost, total))
        if side == "v":
            bias = float(constant.square().sum())
            _count(lora.biases, dim, Share(bias, total + bias))
    return lora


def of_contexts(
    unet: Any, stack: Choices, seen: Mapping[str, Moments], others: Mapping[str, Moments], rank: int
) -> Lora:
    """The best LoRA for contexts that were `seen`; what is lost is measured on `others`."""
    lora = Lora({}, {}, {})
    for name, part, side, dim in _parts(unet, stack):
        layer = name.rpartition(".")[0]
        factors = regression.fit(seen[layer].of(side, part.weight), rank)
        check = others[layer].of(side, part.weight)
        lora.factors[name] = factors
        share = Share(regression.residual(check, factors), check.yy)
        _count(lora.shares, (dim, side), share)
    return lora


def _parts(unet: Any, stack: Choices) -> Iterator[tuple[str, nn.Linear, str, int]]:
    """Every `to_k` and `to_v` that a stack has to do with: name, layer, side, width of contexts."""
    layers = attention_layers(unet)
    for name, layer in tqdm(layers.items(), "LoRA", unit="layer", delay=1, leave=False):
        read = [pairs for net, _ in stack if (pairs := net.at(place_of(name))) is not None]
        for side in "kv":
            part = getattr(layer, f"to_{side}")
            if any(side in pairs.pair(part.in_features) for pairs in read):
                yield f"{name}.to_{side}", part, side, part.in_features


def _change(maps: Maps, name: str, dim: int, side: str) -> Affine:
    """What is added to a context in a layer."""
    return maps(place_of(name), dim)["kv".index(side)].plus(Affine.identity(dim), -1)


def _count(shares: dict[Any, Share], key: Any, share: Share) -> None:
    shares[key] = shares.get(key, Share(0.0, 0.0)) + share
