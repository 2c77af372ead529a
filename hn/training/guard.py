"""Keeps gradient and weights in bounds, and out of them what is not a number."""

import math

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Module

from hn.errors import NumericsError
from hn.training.schedule import Schedule

MAX_SKIPPED = 25  # float16's scaler skips a step now and then; this many in a row are divergence


class Guard:
    """Clips the true gradient (after unscaling) and refuses one that is not finite.

    The gradient is already averaged over the processes, so all of them see the same norm and stop
    together. On a CPU that is before any weight changes. On CUDA the norm is read one step late, so
    that the host need not wait for the device; the weights in memory are lost then, and `confirm`
    keeps them from being saved.
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
    ) -> None:
        self._accelerator = accelerator
        self._parameters = [
            parameter for parameter in model.parameters() if parameter.requires_grad
        ]
        self._mode = mode
        self._bound = bound
        self._max_weight_norm = max_weight_norm
        self._capped: Tensor | None = None  # on the device
        self._skipped = 0
        self._unconfirmed: _Reading | None = None

    def clip(self, step: int) -> Tensor:
        """Clip this step's gradients in place; returns their norm before, on their device.

        Raises `NumericsError`.
        """
        self._accelerator.unscale_gradients()
        bound = self._bound.rate(step)
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self._parameters if p.grad is not None]
        )
        if self._accelerator.scaler is None:
            self.confirm()
            self._unconfirmed = _Reading(step, norm)
            if norm.device.type == "cpu":
                self.confirm()
        if self._mode == "norm":
            torch.nn.utils.clip_grads_with_norm_(self._parameters, bound, norm)
        elif self._mode == "value":
            torch.nn.utils.clip_grad_value_(self._parameters, bound)
        return norm

    def counts(self) -> dict[str, int]:
        """How often a matrix was scaled back since the start, told by the main process alone."""
        if self._max_weight_norm is None:
            return {}
        told = self._capped if self._accelerator.is_main_process else None
        return {"capped_weights": 0 if told is None else int(told)}  # GPU sync

    def confirm(self) -> None:
        """Raise `NumericsError` if the last gradient was not finite."""
        reading, self._unconfirmed = self._unconfirmed, None
        if reading is not None and not math.isfinite(reading.value()):
            raise NumericsError(
                f"step {reading.step}: the gradient is not finite; nothing of it was saved. Resume "
                "from the last checkpoint with a lower learning_rate, or with mixed_precision "
                "bf16 or no."
            )

    def check(self, skipped: bool, step: int) -> None:
        """Hold the weights in bounds after a step, and count one that the scaler skipped.

        Raises `NumericsError` after many of these in a row.
        """
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= MAX_SKIPPED:
            raise NumericsError(
                f"step {step}: float16 overflowed in {MAX_SKIPPED} steps in a row. Use "
                "mixed_precision bf16 or no, or a lower learning_rate; the last checkpoint is "
                "intact."
            )
        if self._max_weight_norm is not None:
            self._cap_weights(self._max_weight_norm)

    @torch.no_grad()
    def _cap_weights(self, bound: float) -> None:
        """Scale every weight matrix whose norm is above the bound back to it.

        (As `scale_weight_norms` of kohya's scripts does with LoRA.) Biases and LayerNorm's factors
        are left alone. Nothing waits for the device.
        """
        matrices: list[Tensor] = [p for p in self._parameters if p.dim() == 2]
        norms = torch.stack(torch._foreach_norm(matrices))
        factors = (bound / norms).clamp(max=1)
        torch._foreach_mul_(matrices, list(factors))
        capped = (factors < 1).sum()
        self._capped = capped if self._capped is None else self._capped + capped


class _Reading:
    """A number on its way to the host."""

    def __init__(self, step: int, number: Tensor) -> None:
        self.step = step
        self._event = None
        self._copy = number.detach()
        if number.device.type == "cuda":
            self._copy = torch.empty_like(self._copy, device="cpu", pin_memory=True)
            self._copy.copy_(number.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def value(self) -> float:
        """Wait for the copy alone, not for what was queued after it."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy.item()
