"""The best checkpoint of a run, by its held-out loss, and the link that leads to it."""

import os
from dataclasses import dataclass, field
from pathlib import Path

LINK = "best"


@dataclass
class Best:
    """What was measured so far; part of a checkpoint, so a resumed run goes on from there.

    `step` has the lowest held-out `loss`. `reference`: the loss of each picture when it last was
    lower beyond doubt, `waited`: how many measurements that is ago.
    """

    step: int | None = None
    loss: float | None = None
    reference: list[float] = field(default_factory=list)
    waited: int = 0

    def forget_unsaved(self, checkpoint: Path) -> None:
        """Let the next measurement be the best if the best so far has no `checkpoint` folder."""
        if not checkpoint.is_dir():
            self.step = self.loss = None


def link(checkpoint: Path) -> None:
    """Make `best` beside a checkpoint lead to it, in one step; a relative link, so it can move."""
    temporary = checkpoint.with_name(f".{LINK}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.name)
    os.replace(temporary, checkpoint.with_name(LINK))
