"""How much the hypernetwork adds to what attention reads: norm(mlp(x)) / norm(x), for each width
and side.

Far above 1, it replaces the contexts instead of shading them, which shows as burnt colours.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hn.diffusion.denoiser import Condition, Denoiser
from hn.network.module import Hypernetwork
from hn.training.checkpoint import TrainingState
from hn.training.reporter import Reporter

BATCHES = 4  # the newest micro-batches, on whose contexts it is measured
TINY = 1e-12  # below the norm of any real token


class Ratios:
    """What the modules of a hypernetwork add while it is watched, by names such as "768.k"."""

    def __init__(self) -> None:
        self._added: dict[str, list[Tensor]] = {}
        self._read: dict[str, list[Tensor]] = {}

    def note(self, name: str, module: nn.Module, inputs: tuple[Tensor], change: Tensor) -> None:
        """Forward hook: keep the norm of every token of `inputs` (B, T, D) and of its change."""
        self._read.setdefault(name, []).append(_norms(inputs[0]))
        self._added.setdefault(name, []).append(_norms(change))

    def by_token(self) -> dict[str, Tensor]:
        """norm(mlp(x)) / norm(x) (N,) of every token."""
        return {
            name: torch.cat(self._added[name]) / torch.cat(self._read[name]).clamp(min=TINY)
            for name in self._read
        }

    def overall(self) -> dict[str, float]:
        """rms(mlp(x)) / rms(x) over all tokens."""
        ratios = {
            name: torch.cat(self._added[name]).norm()
            / torch.cat(self._read[name]).norm().clamp(min=TINY)
            for name in self._read
        }
        return {name: ratio.item() for name, ratio in ratios.items()}  # GPU sync


@contextmanager
def watched(hypernetwork: Hypernetwork) -> Iterator[Ratios]:
    """Measure every context that the hypernetwork rewrites meanwhile; it computes the same."""
    ratios = Ratios()
    hooks = [
        hypernetwork.module(dim, side).linear.register_forward_hook(
            partial(ratios.note, f"{dim}.{side}")
        )
        for dim in hypernetwork.dims
        for side in "kv"
    ]
    try:
        yield ratios
    finally:
        for hook in hooks:
            hook.remove()


class Residuals:
    """Measures when it is due, on the main process, what was trained on last; disturbs nothing."""

    def __init__(
        self, accelerator: Accelerator, denoiser: Denoiser, every: int, reporter: Reporter
    ) -> None:
        self._main = accelerator.is_main_process
        self._denoiser = denoiser
        self._every = every
        self._reporter = reporter
        self._batches: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=BATCHES)
        self._measured_step = -1

    def add(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> None:
        """Keep a micro-batch in mind; nothing waits for the device."""
        if self._main:
            self._batches.append((noisy, timesteps, context))

    def __call__(self, state: TrainingState) -> None:
        """Measure if this step is due."""
        if self._every and state.step % self._every == 0:
            self.measure(state)

    @torch.no_grad()
    def measure(self, state: TrainingState) -> None:
        """Report the ratio and the distribution of each width and side, unless that is done."""
        if not self._batches or self._measured_step == state.step:
            return
        self._measured_step = state.step
        attachment, hypernetwork = self._denoiser.attachment, self._denoiser.hypernetwork
        with attachment.at_strength(1.0), watched(hypernetwork) as ratios:
            for noisy, timesteps, context in self._batches:
                self._denoiser(noisy, timesteps, Condition(context))
        overall = {f"residual_ratio/{name}": ratio for name, ratio in ratios.overall().items()}
        self._reporter.scalars(overall, state.step)
        for name, values in ratios.by_token().items():
            self._reporter.histogram(f"residual_ratio_by_token/{name}", values, state.step)


def _norms(x: Tensor) -> Tensor:
    """Norm of every token of `x` (..., D), as one row (N,)."""
    return x.detach().float().norm(dim=-1).flatten()
