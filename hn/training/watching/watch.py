"""Ends a process that waits in vain, with the name of the one that it waits for.

A process that hangs, is stopped or is lost with its machine sends nothing more, and the others
would wait for it for hours. So a thread in each counts the forwards of the UNet, gives signs of
life, and listens. When nothing has gone on for too long, it finds out who is to blame and tells
all; each ends with the exit code of `DistributedError`. What one raises it tells, too, before it
ends.
"""

import os
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from accelerate import Accelerator
from torch import nn

from hn.errors import DistributedError, StorageError
from hn.training.telling.status import Status
from hn.training.watching.peers import (
    LOST,
    Peers,
    Sign,
    Verdict,
    end_stopped,
    is_broken,
    judge,
    look_at,
)

TICK = 0.5  # seconds between two looks
SILENT = 4  # ticks after which each must have given a new sign of life
PATIENCE = 10  # seconds for the thread to end: a store that is gone takes its time to say so
GRACE = 10  # ticks that the main thread has to end by itself, after another process failed
FIRST = 10  # the first forward takes so many times as long: what is compiled, read, filled
SLOWER = 10  # slow is what takes so many times as long as anything before
ADVICE = "Resume from the last checkpoint. process_timeout_s says how long is waited."


class Watch:
    """Watches over this process, from `begin` on until its `with` ends.

    `seconds`: how long nothing may happen; 0: for ever. Within, `DistributedError` is raised in
    place of a broken connection if the process that broke it has told why.
    """

    def __init__(self, accelerator: Accelerator, status: Status, seconds: float) -> None:
        self._peers = Peers(accelerator.process_index, accelerator.num_processes)
        self._status = status
        self._seconds = seconds
        self._pulse = Pulse(seconds)
        self._main = threading.get_ident()
        self._number = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def begin(self, unet: nn.Module) -> None:
        """Begin to watch; from now on every forward of the UNet counts."""
        if self._seconds:
            with suppress(*LOST):  # at once, so that the others know whom they may miss
                self._peers.show(self._sign())
            unet.register_forward_pre_hook(self._pulse.count)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            # Python ends such threads on its way out, and a store that is asked then takes that
            # for the end of everything (SIGABRT).
            self._thread.join(PATIENCE)
        told = None
        with suppress(*LOST):
            self._peers.show(self._sign(over=True))
            if isinstance(error, Exception):
                told = self._peers.told() or self._tell_of(error)
        if told is not None and told.by != self._peers.rank and is_broken(error):
            raise DistributedError(f"{told.reason}. {ADVICE}") from error

    def _tell_of(self, error: Exception) -> Verdict | None:
        """Tell the others what was raised here, unless that is what one of them left behind."""
        if is_broken(error):
            return None
        first = next(iter(str(error).splitlines()), type(error).__name__)
        rank = self._peers.rank
        return self._peers.tell(Verdict(f"process {rank} ended with an error: {first}", by=rank))

    def _watch(self) -> None:
        """The thread."""
        waited = 0
        while not self._over.wait(TICK):
            stalled = self._pulse.stalled()
            try:
                self._peers.show(self._sign())
                told = self._peers.told()
                if told is None and stalled:
                    told = self._peers.tell(self._judge())
            except LOST:
                told = None
                if stalled:
                    told = Verdict("the other processes cannot be reached, nor their launcher")
            waited += told is not None
            if told is not None and (told.by < 0 or waited > GRACE):
                self._leave(told)

    def _judge(self) -> Verdict:
        """Who is to blame; takes some seconds."""
        before = self._peers.signs()
        for _ in range(SILENT):
            self._over.wait(TICK)
            self._peers.show(self._sign())
        if self._peers.count > 1:
            return judge(before, self._peers.signs(), self._peers.count)
        sign = self._sign()
        return Verdict(f"nothing has happened for {sign.idle:.0f} s, at {sign.place}")

    def _sign(self, *, over: bool = False) -> Sign:
        place, waits = look_at(sys._current_frames().get(self._main))
        self._number += 1
        return Sign(self._number, self._pulse.idle, place, waits, over)

    def _leave(self, told: Verdict) -> None:
        """End the process: its main thread waits for what never comes, and cannot be woken."""
        reason = f"{told.reason}. {ADVICE}"
        print(f"error: {reason}", file=sys.stderr, flush=True)
        well = [rank for rank in range(self._peers.count) if rank not in (*told.silent, told.by)]
        if self._peers.rank in well[:1]:
            self._status.main_process = told.by != 0  # which wrote its own
            with suppress(StorageError):
                self._status.write("failed", DistributedError.exit_code, reason)
            with suppress(*LOST):
                end_stopped(told, self._peers.signs())
        self._over.wait(2 * TICK)  # the others still read what was told, maybe from this process
        os._exit(DistributedError.exit_code)


class Pulse:
    """How long there was no forward, and how long that may be.

    It is counted in looks: a process that was stopped and goes on has waited for nothing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._forwards = self._seen = 0
        self._longest = 0.0
        self.idle = 0.0

    def count(self, module: nn.Module, inputs: Any) -> None:
        """Forward pre-hook: something goes on."""
        self._forwards += 1

    def stalled(self) -> bool:
        """To be asked every `TICK` seconds: whether it was too long."""
        if self._forwards == self._seen:
            self.idle += TICK
        else:
            if self._seen:
                self._longest = max(self._longest, self.idle)
            self._seen, self.idle = self._forwards, 0.0
        first = self._seen <= 1
        allowed = FIRST * self._seconds if first else max(self._seconds, SLOWER * self._longest)
        return self.idle > allowed
