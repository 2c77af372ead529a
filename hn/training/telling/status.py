"""`status.json`: how a run ended, for the scripts that started it. Launchers turn every exit code
into 1.
"""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hn.data.tally import Tally
from hn.storage import write_bytes
from hn.training.keeping.checkpoint import list_checkpoints
from hn.training.state import TrainingState

LAUNCH = "accelerate launch train_hypernetwork.py"


class Status:
    """Writes the file on the main process; `state` is watched once there is one.

    `lock`: the descriptor of what keeps other runs out of the folder.
    """

    def __init__(self, folder: Path, *, main_process: bool, lock: int | None = None) -> None:
        self.folder = folder
        self.state: TrainingState | None = None
        self.main_process = main_process
        self._lock = lock
        self.found = Tally()  # what is odd with pictures and files
        self.rejected: dict[str, str] = {}  # checkpoints that were passed over, and why
        self.notes: Callable[[], dict[str, Any]] = dict  # what else there is to say

    def release(self) -> None:
        """Let other runs into the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def remark(self) -> str:
        """Why training ended before its last step."""
        return self.state.ending if self.state else ""

    def write(self, state: str, exit_code: int, reason: str = "") -> None:
        """Write how it is ("running", "done", "interrupted", "failed") and the command that goes on
        from there.
        """
        if not self.main_process:
            return
        content = {
            "state": state,
            "step": self.state.step if self.state else 0,
            "exit_code": exit_code,
            "reason": reason or self.remark,
            "resume_command": resume_command(self.folder, begun=state == "running"),
            "found": self.found.as_json(),
            **({"rejected_checkpoints": self.rejected} if self.rejected else {}),
            **(self.state.health.counts() if self.state else {}),
            **self.notes(),
        }
        write_bytes(self.folder / "status.json", (json.dumps(content, indent=1) + "\n").encode())


def resume_command(folder: Path, *, begun: bool = False) -> str:
    """The command that goes on with the run in `folder`, or starts it where nothing was saved.

    One that has `begun` may still save.
    """
    config = shlex.quote(str(folder / "config.toml"))
    saved = begun or list_checkpoints(folder / "checkpoints")
    return f"{LAUNCH} --config {config}{' --resume_from_checkpoint latest' * bool(saved)}"
