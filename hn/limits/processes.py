"""What the settings of a run's processes may be."""

import math
import re

from hn.config import TrainingConfig
from hn.errors import OptionError, shown

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SECONDS = (86400, 3600, 60, 1)


def process_faults(training: TrainingConfig) -> list[str]:
    """What cannot work in how long processes run and wait, one line each."""
    faults, timeout = [], training.process_timeout_s
    if not (math.isfinite(timeout) and (timeout == 0 or timeout >= 5)):
        faults.append(
            f"process_timeout_s must be at least 5 seconds, or 0 to wait for ever; found {timeout}"
        )
    try:
        parse_duration(training.max_train_time)
    except OptionError as error:
        faults.append(str(error))
    return faults


def parse_duration(text: str | None) -> float:
    """Seconds of `2h30m` and the like; infinite for None. Raises `OptionError`."""
    if text is None:
        return math.inf
    found = _DURATION.fullmatch(text)
    seconds = sum(
        int(number or 0) * unit
        for number, unit in zip(found.groups() if found else (), _SECONDS, strict=False)
    )
    if seconds == 0:
        raise OptionError(
            "max_train_time must be days, hours, minutes and seconds, in this order, such as 2h30m "
            f"or 90s; found {shown(text)}"
        )
    return seconds
