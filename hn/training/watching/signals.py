"""Ctrl-C, SIGTERM, SIGUSR1 (a cluster's warning), SIGHUP (a closed terminal): save and leave.

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
from torch import Tensor

from hn.errors import INTERRUPTED
from hn.training.watching.readings import Arriving

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


class Stop:
    """Counts signals; what follows from them is agreed on by all processes at a step's boundary.

    `count`: this process's own. Nothing but a signal changes it: one may come at any moment, also
    while the processes compare their counts.
    """

    def __init__(self, accelerator: Accelerator, seconds: float = math.inf) -> None:
        self._accelerator = accelerator
        self._training = False
        self._last: Arriving | None = None
        self._end = time.monotonic() + seconds
        self.count = 0
        self.reason = "another process was signalled"
        self._parent = os.getppid()
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
                signal.signal(number, self._count)
        _follow_launcher()

    def requested(self) -> bool:
        """Whether any process was signalled. Every process must ask at the same steps.

        Asked for the first time, training begins.
        """
        self._training = True
        if self._accelerator.num_processes == 1:
            return self._own_count() > 0
        counts = Arriving(self._counts())
        # Of a GPU, those of the last time, which are here: no step waits for the one before.
        read, self._last = counts if counts.is_here else self._last, counts
        return read is not None and max(read.values) > 0

    def in_a_hurry(self) -> bool:
        """Whether to skip what is optional. Every process must ask at the same time."""
        if self._accelerator.num_processes == 1:
            return self._own_count() > 1
        return max(Arriving(self._counts()).values) > 1

    def _own_count(self) -> int:
        """The signals of this process; the end of the time counts as one."""
        if self.count or time.monotonic() <= self._end:
            return self.count
        self.reason = "max_train_time is over"
        return 1

    def _counts(self) -> Tensor:
        """Those (W,) of all processes."""
        own = torch.full((1,), self._own_count(), device=self._accelerator.device)
        counts: Any = self._accelerator.gather(own)
        return counts

    def _count(self, number: int, frame: FrameType | None) -> None:
        """Raises `KeyboardInterrupt` before training."""
        name = self.reason = signal.Signals(number).name
        if not self._training:
            raise KeyboardInterrupt
        parent, self._parent = self._parent, os.getppid()
        # A launcher that dies of the same Ctrl-C sends a second signal that nobody asked for.
        self.count = self.count + 1 if parent == self._parent else max(1, self.count)
        if self.count > 2:
            os._exit(INTERRUPTED)
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
