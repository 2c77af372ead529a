"""Averages of the weights: what is saved, drawn and measured beside or instead of those trained.

A view is what can be looked at of a run. The first is the hypernetwork that the run is about; where
an average is kept beside it there is a second, `ema`. Within `view.applied()` the hypernetwork has
the weights of the view, and afterwards its own again, to the bit: looking changes nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hn.network.module import Hypernetwork


class View:
    """The weights as they are trained. `name` is that of an average kept beside them."""

    name = ""

    @property
    def tail(self) -> str:
        """What follows the stem of its files."""
        return f"-{self.name}" if self.name else ""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the hypernetwork has the weights of this view."""
        yield

    def update(self) -> None:
        """Take a finished step in."""

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the artifact and the optimizer's state."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from there."""


class Ema(View):
    """An exponential moving average: `average = d * average + (1 - d) * weights` after each step.

    d is `decay`, or (1 + n) / (10 + n) after n updates if that is less, so that the first weights
    are soon forgotten (the rule of TensorFlow's ExponentialMovingAverage). All of it is float32, in
    one kernel for all tensors, and nothing waits for the device.
    """

    name = "ema"

    def __init__(self, hypernetwork: Hypernetwork, decay: float) -> None:
        self._weights = dict(hypernetwork.named_parameters())
        self._average = _copied(self._weights)
        self._decay = decay
        self._updates = 0

    def decay(self, updates: int) -> float:
        """How much is kept after so many updates."""
        return min(self._decay, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights."""
        weights: list[Tensor] = list(self._weights.values())
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - self.decay(self._updates))
        self._updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the hypernetwork has the average."""
        trained = _copied(self._weights)
        _copy(self._average, self._weights)
        try:
            yield
        finally:
            _copy(trained, self._weights)

    def tensors(self) -> dict[str, Tensor]:
        """The average, and how many updates made it."""
        return {**self._average, "updates": torch.tensor(self._updates)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from there."""
        _copy(tensors, self._average)
        self._updates = int(tensors["updates"])


class ScheduleFree(View):
    """The average that a schedule-free optimizer makes by itself (https://arxiv.org/abs/2405.15682).

    It takes gradients elsewhere: at y, between the average x and what runs ahead of it. The run is
    about x; y is what it goes on with.
    """

    def __init__(self, hypernetwork: Hypernetwork, optimizer: Any) -> None:
        self._weights = dict(hypernetwork.named_parameters())
        self._optimizer = optimizer
        optimizer.train()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the hypernetwork has x. The way back is rounded, hence the copy of y."""
        trained = _copied(self._weights)
        self._optimizer.eval()
        try:
            yield
        finally:
            self._optimizer.train()
            _copy(trained, self._weights)

    def tensors(self) -> dict[str, Tensor]:
        """The weights y."""
        return dict(self._weights)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from there."""
        _copy(tensors, self._weights)


class Averages:
    """All views of a run, the one it is about first."""

    def __init__(self, views: Sequence[View] = (View(),)) -> None:
        self._views = views

    def __iter__(self) -> Iterator[View]:
        return iter(self._views)

    def update(self) -> None:
        """Take a finished step in."""
        for view in self._views:
            view.update()

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs of all of them, by name, on the CPU."""
        return {
            f"{view.name}.{name}": tensor.detach().cpu().clone()
            for view in self._views
            for name, tensor in view.tensors().items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from there."""
        for view in self._views:
            prefix = f"{view.name}."
            named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if named:
                view.restore(named)


def _copied(weights: dict[str, Any]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Any]) -> None:
    """Copy the tensors of those names, all at once."""
    torch._foreach_copy_(list(target.values()), [source[name] for name in target])
