"""How much a hypernetwork changes the contexts it rewrites, noted while a forward pass goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hn.network.module import Hypernetwork


class Residuals:
    """Notes norm(mlp(x))^2 / norm(x)^2 of every call of every module in training mode.

    Nothing is computed twice: a hook reads what goes into an MLP and what comes out. Norms are over
    tokens and width, in float32; norm(x) is taken as given, so that larger contexts are no way out.
    """

    def __init__(self, hypernetwork: Hypernetwork) -> None:
        self._ratios: dict[nn.Module, list[Tensor]] = {}
        self._open = False
        for part in hypernetwork.parts():
            part.module.linear.register_forward_hook(self._note)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the calls within, in place of those before.

        A checkpointed block calls its modules again in the backward pass. That is outside: it must
        compute the same once more, but is not noted.
        """
        self._ratios.clear()
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def mean(self) -> Tensor:
        """The mean (a scalar) over samples and calls, of it the mean over the modules called.

        So it is the same whether a text is rewritten once or in every layer.
        """
        means = [torch.stack(ratios).mean() for ratios in self._ratios.values()]
        self._ratios.clear()  # they hold the graph
        return torch.stack(means).mean()

    def _note(self, mlp: nn.Module, args: tuple[Any, ...], change: Tensor) -> None:
        if not mlp.training:
            return
        before = _squared_norm(args[0].detach())
        ratio = _squared_norm(change) / before.clamp(min=torch.finfo(torch.float32).tiny)
        if self._open:
            self._ratios.setdefault(mlp, []).append(ratio)


def _squared_norm(x: Tensor) -> Tensor:
    """Of contexts (B, T, D): (B,)."""
    return x.float().square().flatten(1).sum(1)
