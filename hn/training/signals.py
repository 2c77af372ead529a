"""Ctrl-C, SIGTERM and SIGUSR1 (a cluster's warning): save at the next step and leave.

The first signal asks for that; the second also skips what is optional (previews, the held-out
loss); the third leaves at once. Before the first step there is nothing to save: one is enough.
"""

import ctypes
import math
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from hn.errors import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1


class Stop:
    """Counts signals; `requested` is agreed on by all processes at a step's boundary."""

    def __init__(self, accelerator: Accelerator, seconds: float = math.inf) -> None:
        self._accelerator = accelerator
        self._training = False
        self._end = time.monotonic() + seconds  # then it is as if a signal had come
        self.count = 0
        self.reason = ""
        for number in _SIGNALS:
            signal.signal(number, self._count)
        _follow_launcher()

    def requested(self) -> bool:
        """Whether any process was signalled. Every process must ask at the same steps.

        Asked for the first time, training begins.
        """
        self._training = True
        if time.monotonic() > self._end and self._accelerator.is_main_process:
            self._end = math.inf
            self.count += 1
            self.reason = "max_train_time is over"
        if self._accelerator.num_processes == 1:
            return self.count > 0
        counts = torch.tensor(self.count, device=self._accelerator.device)
        total: Any = self._accelerator.reduce(counts, "sum")
        self.count = int(total.item())  # GPU sync
        return self.count > 0

    @property
    def in_a_hurry(self) -> bool:
        """Whether to skip what is optional."""
        return self.count > 1

    def _count(self, number: int, frame: FrameType | None) -> None:
        """Raises `KeyboardInterrupt` before training."""
        if not self._training:
            raise KeyboardInterrupt
        self.count += 1
        if self.count > 2:
            os._exit(INTERRUPTED)
        name = self.reason = signal.Signals(number).name
        print(
            f"\n{name}: saving after this step, then leaving. Once more: without previews.",
            file=sys.stderr,
        )


def _follow_launcher() -> None:
    """Have Linux send SIGTERM when the launcher dies: accelerate does not pass signals on."""
    launched = (
        any(name.startswith("ACCELERATE_") for name in os.environ) or "LOCAL_RANK" in os.environ
    )
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
