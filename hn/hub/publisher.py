"""Publishing in the background: a run waits for no upload, and ends with none of them.

One thread, and at most one more push waiting: it takes what is newest when it begins. What fails is
tried again, later and later; what cannot work (no right, no such repository) is not. Either is
counted and said in `status.json`, with the command that does it afterwards.
"""

import shlex
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.utils import disable_progress_bars
from tqdm import tqdm

from hn.errors import UserError
from hn.hub_access import may_pass, said
from hn.training.state import TrainingState
from hn.training.watching.signals import Stop

Push = Callable[[Callable[[], bool]], str]


@dataclass(frozen=True)
class Patience:
    """How long what is waited for, in seconds.

    `retries`: before each further attempt. `end`: for uploads at the end of a run; `stopped`: after
    a signal, when a cluster may soon kill.
    """

    retries: tuple[float, ...] = (2, 8, 30, 60)
    end: float = 600
    stopped: float = 25


class Publisher:
    """Pushes when a checkpoint was saved, if `every` steps are given, and at the end.

    Without `push` it does nothing. `notes`: what `status.json` says of it.
    """

    def __init__(
        self,
        push: Push | None = None,
        *,
        folder: Path = Path(),
        every: int = 0,
        patience: Patience = Patience(),
    ) -> None:
        self._push = push
        self._every = every
        self._patience = patience
        self._command = f"python tools/push.py {shlex.quote(str(folder))}"
        self._wanted = threading.Event()
        self._ending = threading.Event()
        self._left = threading.Event()  # nobody waits any longer
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self.notes: dict[str, Any] = {}
        self._url, self._pushed, self._failed = "", 0, 0

    def __call__(self, state: TrainingState) -> None:
        """Push soon, if a checkpoint was saved at this step."""
        if self._push is not None and self._every and state.step % self._every == 0:
            self._request()

    def close(self, stop: Stop, *, finished: bool) -> None:
        """Push what is there at the end, if it is due, and wait for it within reason.

        A signal shortens the waiting, a second one ends it. What was not done is said.
        """
        if self._push is None or not (finished or self._every):
            return
        self._ending.set()
        self._request()
        began = time.monotonic()
        with tqdm(desc="uploading", bar_format="{desc} {elapsed}", leave=False) as bar:
            while self._thread.is_alive() and stop.count < 2:
                patient = finished and not stop.count
                limit = self._patience.end if patient else self._patience.stopped
                if time.monotonic() - began > limit:
                    break
                self._thread.join(0.1)
                bar.refresh()
        self._left.set()
        if "push_command" in self.notes:
            print(f"not uploaded: {self.notes['reason']}; later: {self._command}", file=sys.stderr)
        else:
            print(f"published      {self._url}")

    def _request(self) -> None:
        self._note(reason="it was not finished")
        self._wanted.set()
        if not self._thread.is_alive():
            disable_progress_bars()  # of the hub's library, within ours
            self._thread.start()

    def _work(self) -> None:
        """Push whenever that is wanted; the last time when the run is ending."""
        last = False
        while not last:
            self._wanted.wait()
            self._wanted.clear()
            last = self._ending.is_set()
            for seconds in (*self._patience.retries, None):
                again = self._attempt()
                if not again or seconds is None or self._left.wait(seconds):
                    break

    def _attempt(self) -> bool:
        """Push once; returns whether it makes sense to try again."""
        assert self._push is not None
        try:
            self._url = self._push(self._left.is_set)
        except Exception as error:  # whatever it is, training goes on
            self._failed += 1
            self._note(reason=said(error))
            if not self._left.is_set():
                tqdm.write(f"the upload failed: {said(error)}", file=sys.stderr)
            return not isinstance(error, UserError) or may_pass(error)
        self._pushed += 1
        self._note(reason="it was not finished" if self._wanted.is_set() else None)
        return False

    def _note(self, reason: str | None) -> None:
        missing = {} if reason is None else {"reason": reason, "push_command": self._command}
        counts = {"pushed": self._pushed, "failed": self._failed}
        self.notes = {**counts, **missing}
