"""Keeps gradient and weights in bounds, and out of them what is not a number."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import Module
from tqdm import tqdm

from hn.data.batches import Batch
from hn.errors import NumericsError, shown
from hn.training.gradients import Gradients
from hn.training.schedule import Schedule
from hn.training.state import TrainingState
from hn.training.watching.health import RECENT
from hn.training.watching.readings import Reading

MAX_SKIPPED = 25  # float16's scaler skips a step now and then; this many in a row are divergence
TINY = 1e-6  # lets a gradient of zeros be clipped
IN_A_ROW = 3  # steps without a finite loss and gradient: it is not the pictures


@dataclass(frozen=True)
class Finding:
    """Why a run must go back, to which step at the latest, and whether its rate is to blame."""

    reason: str
    latest: int
    cut: bool


class Guard:
    """Clips the true gradient (after unscaling), and judges each step by its losses and gradient.

    The losses of all processes are exchanged, and their gradient is one: so all of them judge
    alike. A step that is not finite is skipped. Several in a row, or losses beyond `loss_bound`
    (see `Health.excess`), are a `finding`: the run must go back.
    On a CPU a step is judged before any weight changes. On CUDA it is judged one step late, so that
    the host need not wait for the device, but for steps that are `watched`: whose weights something
    saves or looks at. What is found late is a finding, too; from then on each step waits.
    With float16's loss scaling single overflows are normal: the scaler skips those steps.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: Module,
        mode: str,
        bound: Schedule,
        *,
        max_weight_norm: float | None = None,
        loss_bound: float = 0.0,
        watched: Callable[[int], bool] = lambda step: True,
        names: Callable[[Batch], list[str]] = lambda batch: batch.prompts,
        gradients: Gradients | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._gradients = gradients or Gradients(model)
        weights = (it for it in model.parameters() if it.requires_grad)
        self._matrices: list[Tensor] = [it for it in weights if it.dim() == 2]
        self._mode = mode
        self._bound = bound
        self._max_weight_norm = max_weight_norm
        self._loss_bound = loss_bound
        self._watched = watched
        self._names = names
        self._capped: Tensor | None = None  # on the device
        self._losses: list[Tensor] = []
        self._batches: list[Batch] = []
        self._norm = torch.zeros(())
        self._late: Reading | None = None
        self.finding: Finding | None = None

    def note(self, loss: Tensor, batch: Batch) -> None:
        """Note the loss of a micro-batch; nothing waits for the device."""
        self._losses.append(loss.detach())
        self._batches.append(batch)

    def clip(self, step: int) -> Tensor:
        """Clip this step's gradients in place; returns their norm before, on their device."""
        self._accelerator.unscale_gradients()
        gradients = self._gradients.held()
        bound, self._norm = self._bound.rate(step), self._gradients.norm(gradients)
        if self._mode == "norm" and gradients:
            # As torch's `clip_grad_norm_`, which asks each tensor what it is and where, twice.
            torch._foreach_mul_(gradients, (bound / (self._norm + TINY)).clamp(max=1))
        elif self._mode == "value" and gradients:
            torch._foreach_clamp_min_(gradients, -bound)
            torch._foreach_clamp_max_(gradients, bound)
        return self._norm

    def takes(self, state: TrainingState) -> bool:
        """Whether the optimizer may take this step; all processes say the same."""
        reading, late = self._reading(state.step), self._late
        self._late = None
        if late is not None and not self._is_finite(late, state):
            self.finding = Finding(self._fault(late), late.step, cut=False)
            return False
        waits = reading.is_here or state.health.prompt or self._watched(state.step + 1)
        if not waits and self.finding is None:
            self._late = reading
            return True
        return self.finding is None and self._judge(reading, state)

    def is_sound(self, state: TrainingState) -> bool:
        """Whether what the last step made of the weights may be saved."""
        return self._late is None or self._late.is_finite()

    def forget(self) -> None:
        """Judge anew: the run went back."""
        self.finding = self._late = None

    def counts(self) -> dict[str, int]:
        """How often a matrix was scaled back since the start, told by the main process alone."""
        if self._max_weight_norm is None:
            return {}
        told = self._capped if self._accelerator.is_main_process else None
        return {"capped_weights": 0 if told is None else int(told)}  # GPU sync

    def check(self, skipped: bool, state: TrainingState) -> None:
        """Hold the weights in bounds after a step, and count one that the scaler skipped.

        Raises `NumericsError` after many of these in a row.
        """
        if skipped:
            state.health.skipped += 1
            state.health.in_a_row += 1
        if state.health.in_a_row >= MAX_SKIPPED:
            raise NumericsError(
                f"step {state.step}: float16 overflowed in {MAX_SKIPPED} steps in a row. Use "
                "mixed_precision bf16 or no, or a lower learning_rate; the last checkpoint is "
                "intact."
            )
        if self._max_weight_norm is not None:
            self._cap_weights(self._max_weight_norm)

    def _reading(self, step: int) -> Reading:
        """The losses (W,) of all processes and the norm of their gradient, on the way here."""
        own = self._losses[0] if len(self._losses) == 1 else torch.stack(self._losses).mean()
        numbers = torch.stack([own, self._norm])
        if self._accelerator.num_processes > 1:
            losses: Any = self._accelerator.gather(own[None])
            numbers = torch.cat([losses, self._norm[None]])
        reading = Reading(step, numbers, self._batches)
        self._losses, self._batches = [], []
        return reading

    def _is_finite(self, reading: Reading, state: TrainingState) -> bool:
        """Take a step that was taken into the losses, or find that it should not have been."""
        if not reading.is_finite():
            return False
        self._weigh(reading, state)
        return True

    def _judge(self, reading: Reading, state: TrainingState) -> bool:
        """Whether a step may be taken, judged before it is."""
        if reading.is_finite():
            self._weigh(reading, state)
            return self.finding is None
        if self._accelerator.scaler is not None:
            return True  # the scaler skips it
        health, fault = state.health, self._fault(reading)
        health.skipped += 1
        health.in_a_row += 1
        if health.in_a_row < IN_A_ROW:
            if self._accelerator.is_main_process:
                tqdm.write(f"{fault}; the step is skipped", sys.stderr)
            return False
        # What was saved before the first of them is of the same weights: it is no way out.
        reason = f"{fault}, as in the {IN_A_ROW - 1} steps before"
        self.finding = Finding(reason, reading.step - IN_A_ROW, cut=True)
        return False

    def _weigh(self, reading: Reading, state: TrainingState) -> None:
        """Take in the losses of a finite step, and see whether those of late are too high."""
        state.health.note(sum(reading.losses) / len(reading.losses))
        if self._loss_bound and (excess := state.health.excess(self._loss_bound)) is not None:
            median, bound = excess
            reason = f"step {reading.step}: the loss, {median:.4g} of late, is above {bound:.4g}"
            self.finding = Finding(reason, reading.step - RECENT, cut=True)

    def _fault(self, reading: Reading) -> str:
        """What is not finite, and which pictures it is of. All processes must ask together."""
        names = [name for batch in reading.batches for name in self._names(batch)]
        of_all: list[list[str]] = gather_object([names])
        bad = [rank for rank, loss in enumerate(reading.losses) if not math.isfinite(loss)]
        what = "loss" if bad else "gradient"
        named = "; ".join(
            f"process {rank}: {shown(of_all[rank])}" for rank in bad or range(len(of_all))
        )
        return f"step {reading.step}: the {what} is not finite ({named})"

    @torch.no_grad()
    def _cap_weights(self, bound: float) -> None:
        """Scale every weight matrix whose norm is above the bound back to it.

        (As `scale_weight_norms` of kohya's scripts does with LoRA.) Biases and LayerNorm's factors
        are left alone. Nothing waits for the device.
        """
        norms = torch.stack(torch._foreach_norm(self._matrices))
        factors = (bound / norms).clamp(max=1)
        torch._foreach_mul_(self._matrices, list(factors))
        capped = (factors < 1).sum()
        self._capped = capped if self._capped is None else self._capped + capped
