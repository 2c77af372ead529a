"""Numbers and flags as a reader sees them."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

UNKNOWN = "\u2013"

FLAGS = {
    "diverged": "The loss is worse than the base model's, or not a finite number: the training "
    "left the path. It is never recommended. Lower learning_rate, or take an earlier step.",
    "memorising": "Its pictures lie closer to single training pictures than these lie to each "
    "other: it repeats them instead of their style. Take an earlier step or a lower strength, or "
    "train with more pictures.",
    "overfitting": "It still gains on the pictures it was trained on, but no longer on those it "
    "did not see. An earlier step serves new subjects better.",
}


def flag_meaning(flag: str) -> str:
    """What a flag of a checkpoint means, and what to do."""
    return FLAGS.get(flag, "This version of the report has no explanation for it.")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it can be drawn: a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """With `digits` significant ones and a true minus, whole numbers as they are; a dash for what
    is not known.
    """
    if not is_number(value):
        return UNKNOWN if value is None else "not finite"
    if isinstance(value, int):
        return _true_minus(f"{value:,}")
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return _true_minus(f"{mantissa}e{int(exponent)}")
    if size == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return _true_minus(f"{value:,.{decimals}f}")


def percent(value: Any) -> str:
    """A share as per cent: 0.943 is 94.3 %."""
    if not is_number(value):
        return number(value)
    decimals = 0 if abs(value) >= 9.995 else 1
    return _true_minus(f"{100 * value:,.{decimals}f}\u202f%")


def tick(value: float) -> str:
    """A round number beside an axis, without zeros that say nothing."""
    if 0 < abs(value) < 1e-3 or abs(value) >= 1e5:
        mantissa, _, exponent = f"{value:e}".partition("e")
        return _true_minus(f"{float(mantissa):g}e{int(exponent)}")
    return _true_minus(f"{value:,.10g}")


def percent_tick(value: float) -> str:
    """A round share beside an axis."""
    return f"{tick(round(100 * value, 9))}\u202f%"


def interval(value: Any) -> str:
    """A mean with its 95 % interval."""
    if not is_interval(value):
        return UNKNOWN
    return f"{number(value['mean'])} [{number(value['low'])}, {number(value['high'])}]"


def is_interval(value: Any) -> bool:
    """Whether it has a mean, a low and a high end, all finite."""
    return isinstance(value, Mapping) and all(
        is_number(value.get(key)) for key in ("mean", "low", "high")
    )


def checkpoint_name(checkpoint: Mapping[str, Any]) -> str:
    """Such as "step 300", and "step 300, EMA" for averaged weights."""
    averaged = ", EMA" if checkpoint.get("kind") == "ema" else ""
    return f"step {checkpoint.get('step', UNKNOWN)}{averaged}"


def _true_minus(text: str) -> str:
    return text.replace("-", "\u2212")
