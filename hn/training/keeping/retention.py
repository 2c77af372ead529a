"""Which checkpoints stay: a rule as data, for steps alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEAST = 2  # valid ones that always stay: one may be damaged without a word


@dataclass(frozen=True)
class Retention:
    """Keep the newest `limit` (None: all) of those saved every `every` steps, and milestones: every
    `keep_every` steps.

    What a signal saved between these goes when a newer one is there: it counts as none of them, so
    a stopped run keeps what one does that was not stopped.
    """

    every: int
    limit: int | None = None
    keep_every: int | None = None

    def superfluous(
        self, steps: Sequence[int], best: int | None, is_valid: Callable[[int], bool]
    ) -> list[int]:
        """Of these steps, oldest first, those that may go. `is_valid` is asked of few."""
        if self.limit is None:
            return []
        return self._beyond(self.limit, steps, best, is_valid)

    def dispensable(
        self, steps: Sequence[int], best: int | None, is_valid: Callable[[int], bool]
    ) -> list[int]:
        """Those that may go where the disk is full: all beyond the least, if there is a limit."""
        if self.limit is None:
            return []
        return self._beyond(LEAST, steps, best, is_valid)

    def is_scheduled(self, step: int) -> bool:
        """Whether a run saves this step, whatever stops it; without `every` nobody can say."""
        return self.every == 0 or step % self.every == 0

    def _beyond(
        self, limit: int, steps: Sequence[int], best: int | None, is_valid: Callable[[int], bool]
    ) -> list[int]:
        newest_first = sorted(steps, reverse=True)
        scheduled = [step for step in newest_first if self.is_scheduled(step)]
        kept = {*scheduled[: max(LEAST, limit)], *newest_first[:1], best}
        if self.keep_every is not None:
            kept |= {step for step in newest_first if step and step % self.keep_every == 0}
        valid = 0
        for step in newest_first:
            if valid >= LEAST:
                break
            kept.add(step)
            valid += is_valid(step)
        return sorted(step for step in newest_first if step not in kept)
