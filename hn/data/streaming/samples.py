"""What is seen of a streamed picture in one sample: a new crop, perhaps mirrored, every time."""

import hashlib
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from hn import rng
from hn.config import DataConfig
from hn.data.pictures import holes
from hn.data.pictures.decoding import Example, open_picture, open_with_alpha, read_content
from hn.data.pictures.framing import (
    CENTRE,
    Frame,
    Framing,
    loss_weights,
    picture_shares,
    to_levels,
    to_tensor,
)
from hn.diffusion.conditions.views import View
from hn.errors import DataError


@dataclass(frozen=True)
class Sample:
    """A picture as it is trained on once."""

    name: str
    content: int  # 64 bits that stand for the picture's bytes
    mirrored: bool
    view: View
    pixels: Tensor  # (3, height, width) in -1..1
    weights: Tensor | None  # (1, h, w) at the latents' size
    hole: Tensor | None = None  # (1, height, width): 1 where an inpainting model is to paint


class Samples:
    """Decodes and frames pictures, by settings and (seed, step, slot)."""

    def __init__(
        self,
        framing: Framing,
        config: DataConfig,
        seed: int,
        *,
        downscaling: int,
        inpainting: bool = False,
    ) -> None:
        self.framing = framing
        self._config = config
        self._seed = seed
        self._downscaling = downscaling
        self._inpainting = inpainting

    def draw(self, example: Example, size: tuple[int, int], step: int, slot: int) -> Sample:
        """A picture's sample for this step and slot. Raises `DataError` if it cannot be used."""
        alpha = None
        if self._config.use_alpha_weights:
            picture, alpha = open_with_alpha(example)
        else:
            picture = open_picture(example)
        frame = self.framing.frame(picture.size, self._place(step, slot))
        if frame.size != size:  # beside others it needs the size that its header promised
            raise DataError(f"{example.name}: its header names another size than it has")
        pixels = to_tensor(picture, frame)
        weights = self._weights(example.name, alpha, frame)
        mirrored = self._mirrored(step, slot)
        if mirrored:
            pixels = pixels.flip(-1)
            weights = None if weights is None else weights.flip(-1)
        digest = hashlib.sha256(read_content(example)).digest()
        content, hole = int.from_bytes(digest[:8]), self._hole(size, step, slot)
        view = View(picture.size, frame.seen_corner(mirrored), frame.size)
        return Sample(example.name, content, mirrored, view, pixels, weights, hole)

    def _weights(self, name: str, alpha: Image.Image | None, frame: Frame) -> Tensor | None:
        """Loss weights (1, h, w) of what is seen, of this sample alone; None: all ones."""
        shape = frame.size[1] // self._downscaling, frame.size[0] // self._downscaling
        shares = picture_shares(frame, shape)
        if alpha is None and self.framing.resize_mode != "pad":
            return None
        levels = torch.ones_like(shares) if alpha is None else to_levels(alpha, frame, shape)
        if not levels[shares > 0].any():
            raise DataError(f"{name}: all that the crop shows is transparent")
        return loss_weights(levels[None], shares[None])[0]

    def _hole(self, size: tuple[int, int], step: int, slot: int) -> Tensor | None:
        """A new one for every sample."""
        if not self._inpainting:
            return None
        return holes.drawn(size, rng.python_random(self._seed, "mask", step, slot))

    def _place(self, step: int, slot: int) -> tuple[float, float]:
        if not self._config.random_crop:
            return CENTRE
        draw = rng.python_random(self._seed, "crop", step, slot)
        return draw.random(), draw.random()

    def _mirrored(self, step: int, slot: int) -> bool:
        if not self._config.random_flip:
            return False
        return rng.python_random(self._seed, "variant", step, slot).random() < 0.5
