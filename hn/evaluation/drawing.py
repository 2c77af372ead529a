"""Pictures drawn for an evaluation, and their latents as the training pictures have them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hn.config import Config
from hn.data.cache.contexts import Contexts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.pipeline import DRAWN_AT_ONCE, Painter


@dataclass(frozen=True)
class Drawn:
    """`seeds` pictures of each prompt, those of one prompt after each other, and their latents.

    The latents (P * seeds, C, h, w) are those that the autoencoder makes of the pictures: what is
    compared with them, the training set, was encoded, too.
    """

    prompts: list[str]
    seeds: int
    pictures: list[Image.Image]
    latents: Tensor

    @property
    def prompt_of(self) -> list[int]:
        """The number of the prompt of each picture."""
        return [number for number in range(len(self.prompts)) for _ in range(self.seeds)]


@dataclass(frozen=True)
class Studio:
    """Draws with what is attached to the UNet as it is attached now, the same every time."""

    base: BaseModel
    contexts: Contexts
    config: Config
    canvas: Tensor | None = None  # that an inpainting model paints into, if it is not a blank one

    def draw(self, prompts: Sequence[str], seeds: int, what: str = "drawing") -> Drawn:
        """So many pictures of each prompt, each from noise of its own."""
        validation = self.config.validation
        negative = validation.validation_negative_prompt
        stacked = self.contexts.stack([*prompts, negative])
        repeated = stacked[:-1].repeat(seeds)
        pictures: list[Image.Image] = []
        starts = range(0, len(repeated), DRAWN_AT_ONCE)
        for start in tqdm(starts, what, leave=False):
            pictures += Painter(
                self.base,
                repeated[start : start + DRAWN_AT_ONCE],
                self.base.negative(stacked[-1:], negative),
                size=self.config.data.size,
                steps=validation.validation_inference_steps,
                guidance_scale=validation.validation_guidance_scale,
                seed=validation.validation_seed + start,
                canvas=self.canvas,
            ).draw()
        return Drawn(list(prompts), seeds, pictures, encoded(self.base, pictures))


def encoded(base: BaseModel, pictures: Sequence[Image.Image]) -> Tensor:
    """The mean latents (N, C, h, w) of pictures of one size."""
    starts = range(0, len(pictures), DRAWN_AT_ONCE)
    parts = [pictures[start : start + DRAWN_AT_ONCE] for start in starts]
    return torch.cat([base.encode_images(torch.stack([*map(pixels, part)])).mean for part in parts])


def pixels(picture: Image.Image) -> Tensor:
    """A picture as a tensor (3, H, W) in -1..1."""
    values = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32))
    return values.permute(2, 0, 1) / 127.5 - 1
