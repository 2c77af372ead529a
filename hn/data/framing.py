"""What of a picture is trained on: the whole of it stretched, or a part cut out, and how much each
place counts.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ResizeMode = Literal["crop", "stretch"]
CENTRE = (0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A rectangle of `size` in a picture that is `resized` first; all in pixels, width first."""

    size: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]  # left, top
    resample: Image.Resampling

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The rectangle as Pillow wants it: left, top, right, bottom."""
        (left, top), (width, height) = self.corner, self.size
        return left, top, left + width, top + height

    def box_in(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The rectangle in a picture of `size` that is not resized yet, with parts of pixels."""
        left, top, right, bottom = self.box
        (across, down), (width, height) = self.resized, size
        return (
            left * width / across,
            top * height / down,
            right * width / across,
            bottom * height / down,
        )


@dataclass(frozen=True)
class Framing:
    """Where training pictures lie in pictures: of one size (width, height) for now."""

    size: tuple[int, int]
    resize_mode: ResizeMode = "crop"

    def size_for(self, picture: tuple[int, int]) -> tuple[int, int]:
        return self.size

    def frame(self, picture: tuple[int, int], place: tuple[float, float] = CENTRE) -> Frame:
        size = self.size
        if self.resize_mode == "stretch":
            return Frame(size=size, resized=size, corner=(0, 0), resample=Image.Resampling.BICUBIC)
        scale = max(size[0] / picture[0], size[1] / picture[1])
        width = max(size[0], round(picture[0] * scale))
        height = max(size[1], round(picture[1] * scale))
        corner = round((width - size[0]) * place[0]), round((height - size[1]) * place[1])
        return Frame(
            size=size, resized=(width, height), corner=corner, resample=Image.Resampling.LANCZOS
        )


def to_tensor(picture: Image.Image, frame: Frame) -> Tensor:
    """What the frame shows of an RGB picture, as a tensor (3, height, width) in -1..1."""
    resized = picture.resize(frame.resized, frame.resample)
    pixels = np.array(resized.crop(frame.box))
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(127.5).sub(1.0)


def to_levels(alpha: Image.Image, frame: Frame, shape: tuple[int, int]) -> Tensor:
    """What the frame shows of an alpha channel, as levels (1, h, w) in 0..255 of latents (h, w).

    In one step from the channel's own size with the web UI's filter: resizing twice would give
    other levels.
    """
    height, width = shape
    levels = alpha.resize((width, height), Image.Resampling.BICUBIC, frame.box_in(alpha.size))
    return torch.from_numpy(np.array(levels)).float()[None]


def loss_weights(levels: Tensor) -> Tensor:
    """Weights (V, 1, h, w) of minimum 0 and mean 1 from the alpha levels of one picture's crops.

    The rule is the web UI's, taken over all V crops together: a crop that shows the least of the
    picture's alpha only is not learnt from. A constant alpha says nothing: its weights are 1.
    """
    lowest = levels.min()
    if lowest == levels.max():
        return torch.ones_like(levels)
    weights = levels - lowest
    return weights / weights.mean()
