"""How much a hypernetwork adds to what it reads: rms(mlp(x)) / rms(x) of each width and side.

Measured on the contexts that pass through it while a UNet runs, be it in training or beside it. A
ratio that climbs and climbs is what "burning" looks like.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hn.network.module import Hypernetwork


class Residuals:
    """Sums of squares of what went in and of what was added, kept on their device."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, name: str, context: Tensor, rewritten: Tensor) -> None:
        """Count a context (B, T, D), and what became of it at the strength of that moment."""
        context, rewritten = context.detach().float(), rewritten.detach().float()
        change = (rewritten - context).square().sum()
        sums = self._sums.setdefault(name, [torch.zeros_like(change), torch.zeros_like(change)])
        sums[0] += change
        sums[1] += context.square().sum()

    def ratios(self) -> dict[str, float]:
        """The ratios by name, such as "768.k"."""
        return {name: float((change / of).sqrt()) for name, (change, of) in self._sums.items()}


@contextmanager
def watched(net: Hypernetwork) -> Iterator[Residuals]:
    """Count all that passes through `net` for a while."""
    residuals = Residuals()

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            residuals.add(name, args[0], output)

        return module.register_forward_hook(look)

    names = [(f"{dim}.{side}", net.module(dim, side)) for dim in net.dims for side in "kv"]
    handles = [watch(*named) for named in names]
    try:
        yield residuals
    finally:
        for handle in handles:
            handle.remove()
