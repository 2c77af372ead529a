"""How much of a hypernetwork is used: where in the UNet, on which side, and when."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from hn.errors import OptionError, shown
from hn.network.module import Amount, Hypernetwork, Sides, Stack

PARTS = ("down", "mid", "up")
Timesteps = Callable[[], Tensor]
"""The timesteps (S,) of the denoising that is going on, descending."""


@dataclass(frozen=True)
class Strength:
    """A strength that differs between sides, parts of the UNet, or steps.

    A layer reads with `value` times the factor of the side (`k` or `v`), that of its part of the
    UNet (`down`, `mid` or `up`) and that of the moment: `schedule` names points (progress, factor)
    with straight lines between them, progress 0 being the first step and 1 the last of the
    scheduler's. Before the first point its factor holds, after the last one that; two points at
    one progress are a jump. An image-to-image pipeline begins in the middle.

    >>> fade_in = Strength(0.8, schedule=((0.0, 0.0), (0.5, 1.0)))
    >>> values_in_the_decoder = Strength(k=0.0, down=0.0)

    Raises `OptionError` for what is not a finite number, or a schedule that is not in order.
    """

    value: float = 1.0
    k: float = 1.0
    v: float = 1.0
    down: float = 1.0
    mid: float = 1.0
    up: float = 1.0
    schedule: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "schedule":
                check_number(getattr(self, field.name), f"Strength.{field.name}")
        _check_schedule(self.schedule)

    @property
    def is_same_everywhere(self) -> bool:
        """Whether it is the same in all parts of the UNet."""
        return self.down == self.mid == self.up

    def sides(self, part: str, progress: Tensor | None) -> tuple[Amount, Amount]:
        """Its strength for keys and for values in a part of the UNet at a progress ()."""
        amount: Amount = self.value * getattr(self, part)
        if self.schedule:
            assert progress is not None
            amount = amount * self._factor(progress)
        return amount * self.k, amount * self.v

    def _factor(self, progress: Tensor) -> Tensor:
        """The schedule's factor () at a progress ()."""
        factor = torch.full_like(progress, self.schedule[0][1])
        for (start, before), (end, after) in zip(self.schedule, self.schedule[1:], strict=False):
            if end > start:
                way = ((progress - start) / (end - start)).clamp(0, 1)
            else:
                way = (progress >= end).to(progress.dtype)
            factor = factor + (after - before) * way
        return factor


Choice = float | Strength
"""What a user gives as a strength."""
Choices = Sequence[tuple[Hypernetwork, Choice]]
"""Hypernetworks with their strengths, in the order in which they are applied."""


def check_number(value: Any, name: str) -> None:
    """Refuse what is not a finite number. Raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise OptionError(f"{name} must be a finite number, such as 0.8; found {shown(value)}")


def is_scheduled(stack: Choices) -> bool:
    """Whether a strength changes while denoising."""
    return any(isinstance(strength, Strength) and strength.schedule for _, strength in stack)


def resolve(
    stack: Choices, progress: Tensor | None, places: Iterable[str] = PARTS
) -> dict[str, Stack]:
    """The stack that each place of the UNet reads through; one and the same where nothing differs.

    That places share it is how a text context is known to be transformed once for all of them.
    """
    parted = any(isinstance(s, Strength) and not s.is_same_everywhere for _, s in stack)
    stacks: dict[str, Stack] = {}
    alike: dict[tuple[Any, ...], Stack] = {}
    for place in places:
        part, pairs = place.partition(".")[0], [net.at(place) for net, _ in stack]
        key = (parted and part, *map(id, pairs))
        if key not in alike:
            alike[key] = [
                (own, _in_part(strength, part, progress))
                for own, (_, strength) in zip(pairs, stack, strict=True)
                if own is not None
            ]
        stacks[place] = alike[key]
    return stacks


def _in_part(strength: Choice, part: str, progress: Tensor | None) -> Sides:
    return strength.sides(part, progress) if isinstance(strength, Strength) else strength


def measure_progress(timestep: Any, timesteps: Tensor) -> Tensor:
    """How far denoising is (), 0 at the first of the timesteps (S,) and 1 at the last.

    Counted on the device, so that no step waits for the one before. Schedulers that take two looks
    at a step name it twice; it counts once it is reached.
    """
    now = torch.as_tensor(timestep, device=timesteps.device).flatten()[0]
    return (timesteps > now).sum() / (timesteps > timesteps[-1]).sum().clamp(min=1)


def _check_schedule(schedule: Any) -> None:
    if not isinstance(schedule, tuple) or not all(
        isinstance(point, tuple) and len(point) == 2 for point in schedule
    ):
        raise OptionError(
            "Strength.schedule must be points (progress, factor), such as ((0.0, 0.0), (0.5, "
            f"1.0)); found {shown(schedule)}"
        )
    for point in schedule:
        for number in point:
            check_number(number, "each number of Strength.schedule")
    moments = [progress for progress, _ in schedule]
    if moments != sorted(moments) or not all(0 <= moment <= 1 for moment in moments):
        raise OptionError(
            f"the progress of Strength.schedule must rise from 0 to 1; found {shown(moments)}"
        )
