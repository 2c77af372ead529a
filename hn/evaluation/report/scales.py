"""Where a value lies on an axis, and the round numbers that are written beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOGARITHMIC_FROM = 30  # largest value over smallest: more would press most of a curve flat


@dataclass(frozen=True)
class Scale:
    """From values `low`..`high` to 0..1, with ticks inside."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where `value` lies: 0 at `low`, 1 at `high`."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def fit(values: Sequence[float], *, tight: bool = False, may_be_log: bool = True) -> Scale:
    """A scale for finite values (at least one); `tight` ends at them instead of at a tick."""
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low > LOGARITHMIC_FROM:
        return _logarithmic(low, high)
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # all the same
        margin = 0.1 * abs(high) or 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(step * i, 12) for i in range(first, last + 1))
    if tight:
        return Scale(low, high, tuple(tick for tick in ticks if low <= tick <= high))
    return Scale(ticks[0], ticks[-1], ticks)


def _logarithmic(low: float, high: float) -> Scale:
    """Ends at 1, 2 or 5 times a power of ten; ticks there, or at powers alone if these are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = [f * 10.0**i for i in range(first, last + 1) for f in (1, 2, 5)]
    start = max(step for step in steps if step <= low * (1 + 1e-9))
    end = min(step for step in steps if step >= high * (1 - 1e-9))
    ticks = [step for step in steps if start <= step <= end]
    if len(ticks) > 7:
        every = math.ceil((last - first) / 6)
        ticks = [10.0**i for i in range(first, last + 1, every) if start <= 10.0**i <= end]
    return Scale(start, end, tuple(ticks), logarithmic=True)


def _round_step(size: float) -> float:
    """1, 2 or 5 times a power of ten, at least `size`."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= size * (1 - 1e-9))
