"""Holes: what of a picture an inpainting model is to paint, as its mask file says, or as drawn."""

import math
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from hn import rng
from hn.data.pictures.decoding import Example
from hn.data.pictures.framing import Frame, cut_out
from hn.data.pictures.masks import read_mask
from hn.diffusion.conditions.inpainting import MIDDLE
from hn.errors import DataError

WHOLE = 0.25  # chance that everything is to be painted, as Stable Diffusion's were trained
MOST = 4  # rectangles and strokes


@dataclass(frozen=True)
class Hole:
    """One of a picture: that of its mask file, or the drawn one of this `number`.

    `picture` stands for its content, from which it follows how those are drawn.
    """

    picture: int
    number: int | None = None

    def mask(self, example: Example, frame: Frame) -> Tensor:
        """What of the frame is to be painted (1, height, width): 1, the rest 0.

        Raises `DataError` for a mask file that cannot be read, or shows nothing to paint.
        """
        if self.number is None:
            return _of_file(example, frame)
        return drawn(frame.size, rng.python_random(0, "mask", self.picture, self.number))


def drawn(size: tuple[int, int], draw: Random) -> Tensor:
    """Rectangles and strokes, or everything, in `size` of width and height: (1, height, width).

    Of the kind that LaMa was trained with (https://arxiv.org/abs/2109.07161).
    """
    if draw.random() < WHOLE:
        return torch.ones(1, size[1], size[0])
    hole = Image.new("L", size)
    pen = ImageDraw.Draw(hole)
    for _ in range(draw.randint(1, MOST)):
        (_rectangle if draw.random() < 0.5 else _stroke)(pen, size, draw)
    return _binary(hole)


def _rectangle(pen: ImageDraw.ImageDraw, size: tuple[int, int], draw: Random) -> None:
    """An eighth to three quarters of each side, anywhere."""
    sides = [draw.uniform(1 / 8, 3 / 4) * side for side in size]
    left, top = (draw.uniform(0, side - own) for side, own in zip(size, sides, strict=True))
    pen.rectangle((left, top, left + sides[0], top + sides[1]), fill=255)


def _stroke(pen: ImageDraw.ImageDraw, size: tuple[int, int], draw: Random) -> None:
    """A few lines, one where the last one ends, with round ends."""
    width = max(1, round(draw.uniform(1 / 16, 1 / 4) * min(size)))
    x, y = draw.uniform(0, size[0]), draw.uniform(0, size[1])
    for _ in range(draw.randint(2, 6)):
        angle, length = draw.uniform(0, math.tau), draw.uniform(1 / 8, 1 / 2) * max(size)
        end = x + length * math.cos(angle), y + length * math.sin(angle)
        pen.line((x, y, *end), fill=255, width=width)
        x, y = end
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)


def _of_file(example: Example, frame: Frame) -> Tensor:
    found = read_mask(example)
    assert found is not None  # its survey has seen it
    if np.asarray(found[1]).max() < MIDDLE:
        raise DataError(f"{example.name}: its mask is white nowhere, so nothing would be painted")
    return _binary(cut_out(found[1], frame))


def _binary(levels: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(levels) >= MIDDLE).float()[None]
