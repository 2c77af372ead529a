"""How much the hypernetwork adds to what attention reads: norm(mlp(x)) / norm(x), for each module:
of each width and side, and of each block where it has its own.

Far above 1, it replaces the contexts instead of shading them, which shows as burnt colours.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import Denoiser
from hn.network.module import Hypernetwork
from hn.training.state import TrainingState
from hn.training.telling.reporter import Reporter

BATCHES = 4  # the newest micro-batches, on whose contexts it is measured
TINY = 1e-12  # below the norm of any real token


class Ratios:
    """What the modules of a hypernetwork add while it is watched, by names such as "768.k".

    Sums are kept on their device; single tokens only where `tokens` asks for them.
    """

    def __init__(self, *, tokens: bool = False) -> None:
        self._sums: dict[str, Tensor] = {}  # squares of what was added and of what was read (2,)
        self._tokens: dict[str, list[Tensor]] | None = {} if tokens else None

    def note(self, name: str, module: nn.Module, inputs: tuple[Tensor], change: Tensor) -> None:
        """Forward hook: count `inputs` (B, T, D) and its change."""
        norms = torch.stack([_norms(change), _norms(inputs[0])])  # (2, B * T)
        sums = norms.square().sum(1)
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        if self._tokens is not None:
            self._tokens.setdefault(name, []).append(norms[0] / norms[1].clamp(min=TINY))

    def by_token(self) -> dict[str, Tensor]:
        """norm(mlp(x)) / norm(x) (N,) of every token."""
        assert self._tokens is not None
        return {name: torch.cat(ratios) for name, ratios in self._tokens.items()}

    def overall(self) -> dict[str, float]:
        """rms(mlp(x)) / rms(x) over all tokens."""
        return {
            name: float((added / read.clamp(min=TINY**2)).sqrt())  # GPU sync
            for name, (added, read) in self._sums.items()
        }


@contextmanager
def watched(hypernetwork: Hypernetwork, *, tokens: bool = False) -> Iterator[Ratios]:
    """Measure every context that the hypernetwork rewrites meanwhile; it computes the same."""
    ratios = Ratios(tokens=tokens)
    hooks = [
        part.module.linear.register_forward_hook(partial(ratios.note, part.name))
        for part in hypernetwork.parts()
    ]
    try:
        yield ratios
    finally:
        for hook in hooks:
            hook.remove()


class Residuals:
    """Measures when it is due, where it `looks`, what was trained on last; disturbs nothing."""

    def __init__(self, denoiser: Denoiser, every: int, reporter: Reporter, *, looks: bool) -> None:
        self._looks = looks
        self._denoiser = denoiser
        self._every = every
        self._reporter = reporter
        self._batches: deque[tuple[Tensor, Tensor, Condition]] = deque(maxlen=BATCHES)
        self._measured: tuple[int, int] | None = None  # moment

    def add(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> None:
        """Keep a micro-batch in mind; nothing waits for the device."""
        if self._looks:
            self._batches.append((noisy, timesteps, condition))

    def __call__(self, state: TrainingState) -> None:
        """Measure if this step is due."""
        if self._every and state.step % self._every == 0:
            self.measure(state)

    @torch.no_grad()
    def measure(self, state: TrainingState) -> None:
        """Report the ratio and the distribution of each module, unless that is done."""
        if not self._batches or self._measured == state.moment:
            return
        self._measured = state.moment
        attachment, hypernetwork = self._denoiser.attachment, self._denoiser.hypernetwork
        with attachment.at_strength(1.0), watched(hypernetwork, tokens=True) as ratios:
            for noisy, timesteps, condition in self._batches:
                self._denoiser(noisy, timesteps, condition)
        overall = {f"residual_ratio/{name}": ratio for name, ratio in ratios.overall().items()}
        self._reporter.scalars(overall, state.step)
        for name, values in ratios.by_token().items():
            self._reporter.histogram(f"residual_ratio_by_token/{name}", values, state.step)


def _norms(x: Tensor) -> Tensor:
    """Norm of every token of `x` (..., D), as one row (N,)."""
    return x.detach().float().norm(dim=-1).flatten()
