"""Rates as pure functions of the step: the web UI's stages, times warm-up and decay.

A stage string is `"5e-5:150, 2e-5:500, 1e-5"`: use 5e-5 for the steps before 150, then 2e-5 before
500, then 1e-5 until the end. The run ends when its learning rate's stages end. Where steps do not
rise the web UI trains one step too many; we don't.
"""

import math
import sys
from dataclasses import dataclass

from hn.errors import OptionError


@dataclass(frozen=True)
class Stage:
    """One rate, for the steps before `until`."""

    rate: float
    until: int


@dataclass(frozen=True)
class Schedule:
    """Stages, times warm-up and decay. Steps count from 0 and are absolute over resumes."""

    stages: tuple[Stage, ...]
    warmup_steps: int = 0
    cosine: bool = False

    @property
    def end(self) -> int:
        """The step at which the schedule is over."""
        return max(stage.until for stage in self.stages)

    def rate(self, step: int) -> float:
        """The rate of a step; after the end, that of the last one."""
        return self._staged(step) * self._factor(step)

    def _staged(self, step: int) -> float:
        return next(
            (stage.rate for stage in self.stages if step < stage.until), self.stages[-1].rate
        )

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if not self.cosine:
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.end - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parse(
    text: str, max_steps: int, *, start_step: int = 0, setting: str = "learning_rate"
) -> tuple[Stage, ...]:
    """Read a stage string as the web UI does; stages up to `start_step` are dropped.

    Raises `OptionError` naming the `setting`.
    """
    stages: list[Stage] = []
    item = ""
    try:
        for item in filter(None, map(str.strip, text.split(","))):
            rate, *rest = item.split(":")
            # A bare rate, and a:b:c, mean: to the end.
            until = int(rest[0]) if len(rest) == 1 else -1
            if until > start_step or until == -1:
                end = max_steps if until == -1 else min(until, max_steps)
                stages.append(Stage(float(rate), end))
            if until == -1 or until > max(max_steps, start_step):
                break  # what follows could never be reached, and is not even read
    except ValueError as error:
        raise OptionError(_message(setting, text, f"'{item}' is not rate or rate:step")) from error
    if not stages:
        raise OptionError(_message(setting, text, f"no stage is left after step {start_step}"))
    return tuple(stages)


def parse_positive(text: str, max_steps: int, *, setting: str) -> tuple[Stage, ...]:
    """As `parse` from step 0, refusing rates that are not positive numbers."""
    stages = parse(text, max_steps, setting=setting)
    for stage in stages:
        if not (stage.rate > 0 and math.isfinite(stage.rate)):
            raise OptionError(
                _message(setting, text, f"the rate {stage.rate} is not a positive number")
            )
    return stages


def scaled(text: str, factor: float) -> str:
    """The stage string with all of its rates times `factor`. Raises `OptionError`, as `parse`."""
    parse(text, sys.maxsize)
    stages = (item.strip().partition(":") for item in text.split(","))
    return ", ".join(f"{float(rate) * factor:g}{colon}{end}" for rate, colon, end in stages if rate)


def _message(setting: str, text: str, reason: str) -> str:
    allowed = "It is a number, or stages such as '5e-5:150, 2e-5:500, 1e-5'."
    return f"{setting} '{text}': {reason}. {allowed}"
