"""How well a substitute does the work of hypernetworks: on pictures, and on held-out loss."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import inf, log10

import numpy as np
from PIL import Image

from hn.diffusion.base_model import BaseModel
from hn.evaluation import paired
from hn.evaluation.lora import predictor
from hn.evaluation.paired import Comparison, Pictures

Acting = Callable[[], AbstractContextManager[object]]
"""Lets the UNet read through something for a while."""
SEED = 0


@dataclass(frozen=True)
class Fidelity:
    """`missing`: root mean square of the pictures' difference to the original's, relative to how
    much the original changes them. `psnr`: of pictures, in dB. The gains of the held-out loss are
    None without pictures to measure it on.
    """

    missing: float
    psnr: float
    original: Comparison | None
    substitute: Comparison | None

    def __str__(self) -> str:
        lines = [
            f"pictures       {self.missing:.1%} of the change is missing, {self.psnr:.1f} dB PSNR"
        ]
        if self.original is not None and self.substitute is not None:
            kept = self.substitute.gain / self.original.gain if self.original.gain else 0.0
            lines += [
                f"held-out loss  {self.substitute.loss:.4f}; the original "
                f"{self.original.loss:.4f}, the base model {self.original.base_loss:.4f}",
                f"               {kept:.1%} of the gain is kept",
            ]
        return "\n".join(lines)


def judge(
    base: BaseModel,
    draw: Callable[[], Sequence[Image.Image]],
    held_out: Pictures | None,
    original: Acting,
    substitute: Acting,
) -> Fidelity:
    """Draw and measure with the base model alone, with the original and with the substitute."""
    drawn, losses = [], []
    for acting in (nullcontext, original, substitute):
        with acting():
            drawn.append(np.stack([np.asarray(it, dtype=np.float64) for it in draw()]) / 255)
            if held_out is not None:
                losses.append(paired.losses(held_out, predictor(base), base, SEED))
    change, error = (np.sqrt(np.square(it - drawn[1]).mean()) for it in (drawn[0], drawn[2]))
    alone, *others = losses or (None, None, None)
    comparisons = [
        None if it is None or alone is None else Comparison.of(it, alone) for it in others
    ]
    return Fidelity(
        missing=float(error / change) if change else inf,
        psnr=-20 * log10(error) if error else inf,
        original=comparisons[0],
        substitute=comparisons[1],
    )
