"""Keys and values of all layers that read the text, before any of them asks.

The text is the same for all, so what their `to_k` and `to_v` make of it are two large products
instead of two small ones in every layer: the weights lie in one matrix for each side, and those of
a layer are a view of its rows, so that nothing is stored twice.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Contexts = dict[str, tuple[Tensor, Tensor]]
"""What `to_k` and `to_v` read (B, T, D) at each place of the UNet."""
Linears = dict[str, tuple[nn.Linear, nn.Linear]]
"""`to_k` and `to_v` by the names of the layers."""
Projected = dict[str, tuple[Tensor, Tensor]]
"""Keys and values (B, T, C) by the names of the layers."""


class Projections:
    """Computes keys and values of the layers whose `to_k` and `to_v` are as torch made them.

    Others (of a LoRA, quantised, offloaded, trained, with hooks) are left to compute their own.
    Which they are is looked up in every forward, since any of that may come and go. Without
    `stacked`, the weights stay as they are, and every layer has its own products. `places`: where
    each layer finds its contexts.
    """

    def __init__(self, layers: dict[str, Any], places: dict[str, str], *, stacked: bool) -> None:
        reading = [(name, layer) for name, layer in layers.items() if layer.is_cross_attention]
        self._layers = dict(sorted(reading, key=lambda named: places[named[0]]))
        self._places = places
        self._stacked = stacked
        self._matrices: dict[str, StackedWeights] = {}

    def linears(self, text: Tensor) -> Linears:
        """`to_k` and `to_v` of the layers that are computed here, for a text (B, T, D)."""
        return {
            name: (layer.to_k, layer.to_v)
            for name, layer in self._layers.items()
            if _is_plain(layer.to_k, text) and _is_plain(layer.to_v, text)
        }

    def __call__(self, contexts: Contexts, linears: Linears) -> Projected:
        """The keys and values of these layers."""
        if not self._stacked or not linears:
            read = {name: contexts[self._places[name]] for name in linears}
            return {
                name: (to_k(read[name][0]), to_v(read[name][1]))
                for name, (to_k, to_v) in linears.items()
            }
        keys = self._matrix("k", [to_k for to_k, _ in linears.values()])
        values = self._matrix("v", [to_v for _, to_v in linears.values()])
        names, projected = list(linears), {}
        read_by = [contexts[self._places[name]] for name in names]
        for start, end in _alike(read_by):
            context_k, context_v = read_by[start]
            sides = zip(keys(context_k, start, end), values(context_v, start, end), strict=True)
            projected |= zip(names[start:end], sides, strict=True)
        return projected

    def _matrix(self, side: str, linears: list[nn.Linear]) -> "StackedWeights":
        """The weights of these layers in one; made anew where one of them has been changed."""
        matrix = self._matrices.get(side)
        if matrix is None or not matrix.is_of(linears):
            self._matrices[side] = matrix = StackedWeights(linears)
        return matrix


class StackedWeights:
    """The weights (C, D) of linear layers as one matrix (sum of C, D), of which they are views."""

    def __init__(self, linears: list[nn.Linear]) -> None:
        self._linears = linears
        self._matrix = torch.cat([linear.weight.detach() for linear in linears])
        self._sizes = [linear.out_features for linear in linears]
        rows = self._matrix.split(self._sizes)
        for linear, own in zip(linears, rows, strict=True):
            linear.weight.data = own
        self._places = [own.data_ptr() for own in rows]

    def is_of(self, linears: list[nn.Linear]) -> bool:
        """Whether these are the layers, and their weights still views.

        The matrix is alive, so nothing else can lie where its rows do.
        """
        return len(linears) == len(self._linears) and all(
            linear is own and linear.weight.data_ptr() == place
            for linear, own, place in zip(linears, self._linears, self._places, strict=True)
        )

    def __call__(self, context: Tensor, start: int, end: int) -> tuple[Tensor, ...]:
        """What the layers from `start` to `end` make of a context (B, T, D): (B, T, C) of each."""
        sizes, first = self._sizes[start:end], sum(self._sizes[:start])
        return F.linear(context, self._matrix[first : first + sum(sizes)]).split(sizes, -1)


def _alike(read: list[tuple[Tensor, Tensor]]) -> list[tuple[int, int]]:
    """From where to where layers read the very same contexts."""
    borders = [i for i in range(len(read)) if i == 0 or read[i] is not read[i - 1]]
    return list(pairwise([*borders, len(read)]))


def _is_plain(linear: Any, text: Tensor) -> bool:
    """Whether it is a frozen linear layer for this text (B, T, D), and nothing watches it."""
    if type(linear) is not nn.Linear or type(linear.weight) is not nn.Parameter:
        return False
    weight = linear.weight
    watched = linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks
    replaced = "forward" in vars(linear) or linear.bias is not None
    alike = weight.device == text.device and weight.dtype == text.dtype
    fits = weight.shape[-1] == text.shape[-1] and not weight.is_inference()  # 0: dealt out
    return alike and fits and not weight.requires_grad and not watched and not replaced
