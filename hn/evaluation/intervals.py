"""95 % intervals of means and of shares; Python and torch alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, its standard error, and so many of these to either side of it."""

    mean: float
    error: float
    width: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.width * self.error

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.width * self.error

    def as_json(self) -> dict[str, float]:
        """Its three numbers, or nothing where they are not finite: of one value, say."""
        values = {"mean": self.mean, "low": self.low, "high": self.high}
        return values if all(map(math.isfinite, values.values())) else {}


def of_mean(values: Tensor) -> Interval:
    """Student's interval of the mean of independent values (N,); endless for fewer than two.

    Draws of one picture depend on each other, so a value is the mean of all of a picture: the
    interval is clustered by picture, and that costs no assumption where all have equally many.
    """
    count = len(values)
    values = values.double()
    if count < 2:
        return Interval(float(values.mean()), math.inf, 1.0)
    error = float(values.std()) / math.sqrt(count)
    return Interval(float(values.mean()), error, t_quantile(count - 1))


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """How many standard errors hold `level` of Student's distribution in their middle."""
    return _root(lambda t: t_within(t, freedom) - level, 0.0, 1e3)


def t_within(t: float, freedom: int) -> float:
    """The probability of -t..t; exact sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))


def share_at_least(hits: int, count: int, level: float = LEVEL) -> float:
    """The share that so many hits prove at least: Clopper and Pearson's one-sided bound."""
    if hits == 0:
        return 0.0
    return _root(lambda p: _binomial_tail(hits, count, p) - (1 - level), 0.0, 1.0)


def _binomial_tail(hits: int, count: int, share: float) -> float:
    """The probability of at least so many hits."""
    rest = range(hits, count + 1)
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in rest)


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function crosses zero, to twelve digits, by halving."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
        if high - low <= 1e-12 * max(1.0, high):
            break
    return (low + high) / 2
