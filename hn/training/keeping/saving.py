"""When checkpoints are saved, and which of them stay."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from hn.errors import StorageError
from hn.training.keeping.best import LINK, link
from hn.training.keeping.checkpoint import (
    fault,
    list_checkpoints,
    path_of,
    room,
    set_aside,
    step_of,
    write_artifacts,
    write_checkpoint,
)
from hn.training.keeping.retention import Retention
from hn.training.state import TrainingState

Streams = list[dict[str, Any]]  # where in its stream each process is, if there are any


class Checkpoints:
    """Saves when it is due, and removes what need not stay.

    With `keep_best` the best is saved, too, stays, and has a link of that name.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        name: str,
        *,
        retention: Retention,
        keep_best: bool = False,
        optimizer_name: str | None = None,
        is_sound: Callable[[TrainingState], bool] = lambda state: True,
    ) -> None:
        self._accelerator = accelerator
        self.folder = folder
        self.retention = retention
        self._name = name
        self._keep_best = keep_best
        self._optimizer_name = optimizer_name  # whose state is written for the web UI, too
        self._is_sound = is_sound  # whether the weights may be saved
        self._saved: tuple[int, int] | None = None  # moment

    def __call__(self, state: TrainingState) -> None:
        """Save if this step is due, and was not skipped: its weights may be what was wrong."""
        best = self._keep_best and state.step == state.best.step
        due = best or (self.retention.every and self.retention.is_scheduled(state.step))
        if due and state.health.in_a_row == 0:
            self.save(state)

    def save(self, state: TrainingState) -> None:
        """Save the state, unless this step is saved; the main process writes, all wait for it.

        Raises `StorageError` or, for weights that are not finite, `NumericsError`.
        """
        state.hypernetwork.describe(step=state.step)
        if self._saved != state.moment and self._may_save(state):
            streams: Streams = [] if state.stream is None else gather_object([state.stream.state()])
            whole = state.gathered()
            if self._accelerator.is_main_process:
                path = path_of(self.folder, state.step)
                best = state.best.step if self._keep_best else None
                self._write(path, whole, streams, best)
                self._rotate_or_say(path, state, best)
            self._saved = state.moment
        self._accelerator.wait_for_everyone()

    def publish(self, state: TrainingState, folder: Path, *, finished: bool) -> None:
        """Put the artifact into the run's folder, if it is finished. Raises `NumericsError`."""
        if not finished:
            return
        whole = state.gathered()
        if self._accelerator.is_main_process:
            write_artifacts(whole, folder / self._name, self._optimizer_name)

    def scheduled(self) -> list[int]:
        """Steps of the checkpoints that a run saves whatever stops it, oldest first; without an
        interval there are none. Whether they are valid is not looked at.
        """
        steps = map(step_of, list_checkpoints(self.folder)) if self.retention.every else ()
        return [step for step in steps if self.retention.is_scheduled(step)]

    def forget_unsaved(self, state: TrainingState) -> None:
        """Where the best so far is not here, let the next measurement be the best."""
        if self._keep_best and state.best.step is not None:
            state.best.forget_unsaved(path_of(self.folder, state.best.step))

    def _may_save(self, state: TrainingState) -> bool:
        sound = self._is_sound(state)
        if not sound:
            self._accelerator.print(
                f"step {state.step} is not saved, since the last gradient is not finite: the "
                "checkpoint before it is what to go on from"
            )
        return sound

    def _write(self, path: Path, state: TrainingState, streams: Streams, best: int | None) -> None:
        """Write it; where that fails, once more, after removing what may be removed."""
        try:
            write_checkpoint(path, state, self._name, self._optimizer_name, streams)
        except StorageError as error:
            removed = self._make_room(best) or "nothing"
            tqdm.write(f"warning: {error} Removed: {removed}. It is tried once more.", sys.stderr)
            write_checkpoint(path, state, self._name, self._optimizer_name, streams)

    def _make_room(self, best: int | None) -> str:
        """Remove what the limit allows to be removed; returns the names."""
        steps = [step_of(path) for path in list_checkpoints(self.folder)]
        doomed = self.retention.dispensable(steps, best, self._is_valid)
        self._remove(doomed)
        return ", ".join(path_of(self.folder, step).name for step in doomed)

    def _rotate_or_say(self, path: Path, state: TrainingState, best: int | None) -> None:
        try:
            self._rotate(state, best)
        except OSError as error:
            raise StorageError(
                f"{path} is saved, but older ones cannot be removed, or the best linked to: "
                f"{error}. {room(self.folder)}"
            ) from error

    def _rotate(self, state: TrainingState, best: int | None) -> None:
        """Link to the best; remove what was left behind by going back, and beyond the limit."""
        if best is not None and path_of(self.folder, best).is_dir():
            link(path_of(self.folder, best))
        steps = [step_of(path) for path in list_checkpoints(self.folder)]
        left = state.health.left
        if left is not None:
            abandoned = [step for step in steps if state.step < step <= left and step != best]
            self._remove(abandoned)
            steps = [step for step in steps if step not in abandoned]
        self._remove(self.retention.superfluous(steps, best, self._is_valid))
        linked = self.folder / LINK
        if linked.is_symlink() and not linked.exists():  # it was of a way that was left
            linked.unlink()

    def _is_valid(self, step: int) -> bool:
        return fault(path_of(self.folder, step)) is None

    def _remove(self, steps: list[int]) -> None:
        """None of them is ever half gone."""
        for step in steps:
            shutil.rmtree(set_aside(path_of(self.folder, step)))
