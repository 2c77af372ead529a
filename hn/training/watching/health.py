"""How a run is: what of it was skipped, how often it went back, and the losses that this is judged
by. Part of a checkpoint, so that a resumed run judges as one that was not stopped.

Single losses say little: at one timestep they are a hundred times those at another. What counts is
the median of the newest ones, held against median and MAD (the median distance from the median) of
those before, which a few odd ones do not move.
"""

from dataclasses import dataclass, field
from statistics import median

WINDOW = 200  # losses that the newest are held against
RECENT = 25  # the newest: 13 of them above the bound are no accident, if 2 % of losses are
LEAST = 50  # of the window: with fewer nothing is judged


@dataclass
class Health:
    """Counts, and the newest losses of steps, oldest first.

    `skipped`: steps of which nothing was taken, `in_a_row`: those of them at the end. `returns`:
    how often it went back to an earlier step, `rollbacks`: those of them that cut the rate, and of
    the last one the step that it led `back_to` and was `left` at. `learning_rate`: the setting
    whose rates were cut. `prompt`: whether each step waits for its own reading.
    """

    skipped: int = 0
    in_a_row: int = 0
    returns: int = 0
    rollbacks: int = 0
    back_to: int | None = None
    left: int | None = None
    learning_rate: str = ""
    prompt: bool = False
    losses: list[float] = field(default_factory=list)

    def note(self, loss: float) -> None:
        """Take in the loss of a step."""
        self.in_a_row = 0
        self.losses = [*self.losses[1 - WINDOW - RECENT :], loss]

    def excess(self, factor: float) -> tuple[float, float] | None:
        """The median of the newest losses and the bound it is above; None if it is not.

        The bound is `median + factor * MAD`, where the MAD counts as a tenth of the median at
        least: what hardly varies may double.
        """
        before, newest = self.losses[:-RECENT], median(self.losses[-RECENT:])
        if len(before) < LEAST:
            return None
        middle = median(before)
        if newest <= middle:
            return None
        spread = median(abs(loss - middle) for loss in before)
        bound = middle + factor * max(spread, abs(middle) / 10)
        return (newest, bound) if newest > bound else None

    def counts(self) -> dict[str, int]:
        """What was out of the ordinary, if anything was."""
        counts = {"skipped_steps": self.skipped, "rollbacks": self.rollbacks}
        return {name: count for name, count in counts.items() if count}

    def of_rate(self, learning_rate: str) -> "Health":
        """The same, for a run of these rates: where they are others, none of them was cut yet."""
        if learning_rate != self.learning_rate:
            self.rollbacks, self.back_to = 0, None
            self.learning_rate = learning_rate
        return self
