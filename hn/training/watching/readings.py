"""Numbers of a step on their way from the device, which nobody need wait for at once."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from hn.data.batches import Batch


class Arriving:
    """Numbers (N,) that are copied to the host while the device goes on. `is_here`: at once."""

    def __init__(self, numbers: Tensor) -> None:
        self.is_here = numbers.device.type != "cuda"
        self._event = None
        self._copy = numbers.detach()
        if not self.is_here:
            self._copy = torch.empty_like(self._copy, device="cpu", pin_memory=True)
            self._copy.copy_(numbers.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @cached_property
    def values(self) -> list[float]:
        """Wait for the copy alone, not for what was queued after it."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy.tolist()


class Reading(Arriving):
    """Losses (W,) of the processes and the norm of their gradient, at a step, in one tensor."""

    def __init__(self, step: int, numbers: Tensor, batches: Sequence[Batch]) -> None:
        super().__init__(numbers)
        self.step = step
        self.batches = batches

    @property
    def losses(self) -> list[float]:
        """The mean loss of each process."""
        return self.values[:-1]

    def is_finite(self) -> bool:
        """Whether all of them are."""
        return all(map(math.isfinite, self.values))
