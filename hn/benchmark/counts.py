"""What a step takes, counted and not timed: the same on every machine."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hn.benchmark.contender import Contender
from hn.benchmark.memory import PeakMemory
from hn.benchmark.scene import Scene

Build = Callable[[Scene], Contender]


@dataclass(frozen=True)
class Counts:
    """Of a forward and backward pass: operations on numbers (`flops`, of products and convolutions,
    recomputed ones as well) and bytes: `saved` for the backward pass, `peak` at any time. Of
    weights, their gradients and the optimizer: `static` bytes, those of the UNet aside.
    """

    flops: int
    saved: int
    peak: int
    static: int


def count(build: Build, scene: Scene) -> Counts:
    """Count on meta tensors, in a second or two, whatever the scene's device."""
    contender = build(replace(scene, device="meta"))
    held = hold(contender)
    return Counts(calculate(contender), held.saved, held.peak, _static(contender))


def calculate(contender: Contender) -> int:
    """How many operations on numbers its passes take."""
    flops: Any = FlopCounterMode(display=False)
    with flops:
        contender.backward(contender.problem(0))
    return flops.get_total_flops()


def hold(contender: Contender) -> PeakMemory:
    """What its passes hold, if the gradients are there, as after the first micro-batch."""
    for parameter in contender.taught:
        parameter.grad = torch.zeros_like(parameter)
    with PeakMemory() as held:
        contender.backward(contender.problem(0))
    return held


def unet_bytes(scene: Scene) -> int:
    """Of the frozen weights, which all contenders share."""
    unet = replace(scene, device="meta").make_unet()
    return sum(p.numel() * p.element_size() for p in unet.parameters())


def _static(contender: Contender) -> int:
    """Trained parameters, their gradients and two moments, in float32; idle gradients; encoders."""
    trained = sum(p.numel() for p in contender.parameters)
    idle = contender.taught[len(contender.parameters) :]
    return 4 * 4 * trained + sum(p.numel() * p.element_size() for p in (*idle, *contender.frozen))
