"""Matrices as linear hypernetworks of any structure, by singular values where it is narrower."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from hn.network.contents import Contents
from hn.network.description import HypernetworkConfig, Provenance
from hn.network.module import Hypernetwork
from hn.network.sharing import net_by_width
from hn.network.surgery.affine import WIDE, Affine, change_of, check_linear, name_of

FLAT = (1, 1)  # one matrix: the least that holds any


@dataclass(frozen=True)
class Resized:
    """A hypernetwork, and what it lacks: the relative error (Frobenius) of each matrix."""

    net: Hypernetwork
    errors: dict[tuple[int, str], float]

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors.values())


def resize(net: Hypernetwork, structure: tuple[float, ...]) -> Resized:
    """A linear hypernetwork in another structure: exact, or nearest where that is narrower.

    Raises `ModelError` if it is not linear, or is read in some blocks alone.
    """
    net = net_by_width(net)
    check_linear([net], "another structure", "Distil it into that structure (tools/distil.py).")
    changes = {
        (dim, side): change_of(net.module(dim, side), dim) for dim in net.dims for side in "kv"
    }
    told = net.provenance.optional_info or name_of(net)
    words = "-".join(f"{multiplier:g}" for multiplier in structure)
    origin = replace(net.provenance, optional_info=f"{told}, resized to {words}")
    return from_affine(changes, structure, origin)


def from_affine(
    changes: Mapping[tuple[int, str], Affine],
    structure: tuple[float, ...],
    provenance: Provenance,
) -> Resized:
    """The linear hypernetwork that adds these to contexts; by width and side, k before v."""
    config = HypernetworkConfig(
        dims=tuple(dict.fromkeys(dim for dim, _ in changes)), layer_structure=structure
    )
    tensors: dict[str, Tensor] = {}
    errors = {}
    for (dim, side), change in changes.items():
        weights, errors[dim, side] = _factor(change.weight, structure)
        for number, weight in enumerate(weights):
            bias = change.bias if number == len(weights) - 1 else torch.zeros(len(weight))
            name = f"{dim}.{side}.linear.{number}"
            tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    contents = Contents(
        config=config, provenance=replace(provenance, step=0), tensors=tensors
    ).check()
    return Resized(contents.build(), errors)


def _factor(matrix: Tensor, structure: tuple[float, ...]) -> tuple[list[Tensor], float]:
    """Matrices of these widths whose product is nearest to `matrix`, and the relative error."""
    if len(structure) == 2:
        return [matrix], 0.0
    widths = [int(len(matrix) * multiplier) for multiplier in structure]
    rank = min(widths)
    left, values, right = torch.linalg.svd(matrix)
    roots = values[:rank].sqrt()
    factors = []
    for width_in, width_out in pairwise(widths):
        factor = torch.zeros(width_out, width_in, dtype=WIDE)
        factor[:rank, :rank] = torch.eye(rank, dtype=WIDE)
        factors.append(factor)
    factors[0][:rank] = roots[:, None] * right[:rank]
    factors[-1][:, :rank] = left[:, :rank] * roots
    total = values.norm()
    return factors, float(values[rank:].norm() / total) if total else 0.0
