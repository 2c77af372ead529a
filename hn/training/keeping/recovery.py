"""Back to a state from which training can go on, with lower rates, where it cannot go on here.

Where to is a function of what is saved: the newest checkpoint that a run saves whatever stops it;
where the last return led there already, the one before it; where there is none, what this process
began with. So a run that is killed and resumed goes back to where it would have gone without.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from hn.errors import NumericsError
from hn.training.keeping.checkpoint import fault, path_of, restore
from hn.training.keeping.saving import Checkpoints
from hn.training.keeping.snapshot import Snapshot
from hn.training.state import TrainingState
from hn.training.telling.reporter import Reporter
from hn.training.watching.guard import Finding, Guard


class Recovery:
    """Goes back where the guard found that the run must, `limit` times with lower rates.

    The rates are those of the schedule times `factor` for each of these times.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        guard: Guard,
        checkpoints: Checkpoints,
        reporter: Reporter,
        beginning: Snapshot,
        *,
        limit: int,
        factor: float,
    ) -> None:
        self._accelerator = accelerator
        self._guard = guard
        self._checkpoints = checkpoints
        self._reporter = reporter
        self._beginning = beginning
        self._limit = limit
        self._factor = factor

    def rate_factor(self, state: TrainingState) -> float:
        """What the rate of the schedule is multiplied by."""
        return self._factor**state.health.rollbacks

    def __call__(self, state: TrainingState) -> bool:
        """Go back if that is needed; all processes do. Raises `NumericsError` to give up."""
        finding = self._guard.finding
        if finding is None:
            return False
        step = self._target(state, finding.latest)
        if finding.cut and state.health.rollbacks >= self._limit:
            raise NumericsError(self._farewell(finding, state, step))
        self._return_to(step, state, finding)
        self._guard.forget()
        self._reporter.rewind(state.step)
        if self._accelerator.is_main_process:
            then = f"the rates are now those of the schedule times {self.rate_factor(state):g}"
            tqdm.write(
                f"{finding.reason}: back to step {state.step}; "
                + (then if finding.cut else "the step will be skipped"),
                sys.stderr,
            )
        return True

    def _return_to(self, step: int | None, state: TrainingState, finding: Finding) -> None:
        """Restore the state of a step; None: that of the beginning."""
        left, health = state.step, state.health
        if step is None:
            self._beginning.put_back(state)
        else:
            path = path_of(self._checkpoints.folder, step)
            restore(path, state, self._accelerator.process_index)
        self._checkpoints.forget_unsaved(state)
        state.health = replace(
            state.health,
            skipped=health.skipped,
            in_a_row=0,
            returns=health.returns + 1,
            prompt=health.prompt or not finding.cut,
            rollbacks=health.rollbacks + finding.cut,
            back_to=state.step if finding.cut else health.back_to,
            left=max(left, health.left or 0),
        )

    def _target(self, state: TrainingState, latest: int) -> int | None:
        """The step to go back to, found by the main process; None: the beginning."""
        steps = []
        if self._accelerator.is_main_process:
            steps = [step for step in self._checkpoints.scheduled() if step <= latest]
        step = choose(steps, state.health.back_to)
        while step is not None and fault(path_of(self._checkpoints.folder, step)) is not None:
            steps.remove(step)
            step = choose(steps, state.health.back_to)
        return broadcast_object_list([step])[0]

    def _farewell(self, finding: Finding, state: TrainingState, step: int | None) -> str:
        path = None if step is None else path_of(self._checkpoints.folder, step)
        intact = "nothing was saved before that" if path is None else f"{path} is intact"
        return (
            f"{finding.reason}. The run went back {state.health.rollbacks} times (max_rollbacks "
            f"{self._limit}), which did not help; {intact}. Begin anew or go on from there "
            "(--resume_from_checkpoint) with a lower learning_rate, or with mixed_precision bf16 "
            "or no; look at the pictures named, if any are."
        )


def choose(steps: Sequence[int], back_to: int | None) -> int | None:
    """Of saved steps, oldest first, the one to go back to after a return to `back_to`."""
    newer = [step for step in steps if back_to is None or step > back_to]
    older = [step for step in steps if back_to is not None and step < back_to]
    return (newer or older or [None])[-1]
