"""Inpainting: what a UNet of 9 channels reads beside the noisy latents, its canvas.

A canvas (B, 1 + C, h, w) is a mask, 1 where is to be painted, and the latents of what is left of
the picture, which is grey there. Without a picture all is to be painted, of a grey one: so such a
model draws from text alone, in the web UI, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from hn.diffusion.base_model import BaseModel
from hn.errors import DataError, OptionError

MIDDLE = 128  # levels of a mask from here on are to be painted
TOLERANCE = 1  # percent, between the proportions of a picture and of its mask


def left_of(pixels: Tensor, masks: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in -1..1, grey where the masks (B, 1, H, W) are 1."""
    return pixels * (1 - masks)


def join(masks: Tensor, latents: Tensor) -> Tensor:
    """The canvas (B, 1 + C, h, w) of masks (B, 1, H, W) and latents (B, C, h, w) of what is left.

    Of a mask every place of the latents takes one pixel, as in diffusers and the web UI.
    """
    small = F.interpolate(masks.to(latents), size=latents.shape[-2:], mode="nearest")
    return torch.cat([small, latents], dim=1)


def encode(base: BaseModel, pixels: Tensor, masks: Tensor) -> Tensor:
    """The canvas (B, 1 + C, h, w) of pictures (B, 3, H, W) and masks (B, 1, H, W), on the CPU.

    Of the latents the mean, so that the same picture is always the same.
    """
    return join(masks, base.encode_images(left_of(pixels, masks)).mean)


def blank(base: BaseModel, size: tuple[int, int]) -> Tensor:
    """The canvas (1, 1 + C, h, w) on which all of a picture of this width and height is painted."""
    width, height = size
    return encode(base, torch.zeros(1, 3, height, width), torch.ones(1, 1, height, width))


def blanks(base: BaseModel, latents: Tensor) -> Tensor | None:
    """Blank canvases (N, 1 + C, h, w) for latents (N, C, h, w), which were drawn on such; None for
    a model that reads none.
    """
    if not base.inpainting:
        return None
    height, width = (side * base.downscaling for side in latents.shape[-2:])
    return blank(base, (width, height)).expand(len(latents), -1, -1, -1)


def of_files(
    base: BaseModel, picture: str | Path, mask: str | Path, size: tuple[int, int]
) -> Tensor:
    """The canvas (1, 1 + C, h, w) of a picture and its mask, white where is to be painted.

    Both fill this width and height, what is over is cut off. Raises as `check_files`.
    """
    pixels, levels = (
        np.array(ImageOps.fit(it, size, Image.Resampling.LANCZOS)) for it in _read(picture, mask)
    )
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(127.5).sub(1.0)
    return encode(base, values, torch.from_numpy(levels >= MIDDLE).float()[None, None])


def check_files(picture: str | Path, mask: str | Path) -> None:
    """Raises `DataError` for what cannot be read or does not go together, or if nothing is to be
    painted.
    """
    pixels, levels = _read(picture, mask)
    (width, height), (across, down) = pixels.size, levels.size
    if 100 * abs(width * down - height * across) > TOLERANCE * height * across:
        raise DataError(
            f"{mask} is of {across} x {down} pixels, {picture} of {width} x {height}: their "
            f"proportions must be the same, within {TOLERANCE} %"
        )
    if np.asarray(levels).max() < MIDDLE:
        raise DataError(f"{mask} is white nowhere, so nothing would be painted")


def check_base(wanted: dict[str, Any], *, inpainting: bool) -> None:
    """Refuse settings that are for inpainting where the base model does none. `OptionError`."""
    given = [name for name, value in wanted.items() if value is not None]
    if given and not inpainting:
        raise OptionError(
            f"{' and '.join(given)}: for inpainting base models, whose UNet reads 9 channels; this "
            "one reads its latents only: leave it out, or give another base model"
        )


@contextmanager
def reading(unet: UNet2DConditionModel, canvas: Tensor | None) -> Iterator[None]:
    """Let the UNet read a canvas (1 or B, 1 + C, h, w) beside what a pipeline gives it, which may
    be a multiple of B. None: it does without.
    """
    if canvas is None:
        yield
        return

    def add(module: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[tuple[Any, ...], Any]:
        noisy = args[0]
        beside = canvas.to(noisy).repeat(len(noisy) // len(canvas), 1, 1, 1)
        return (torch.cat([noisy, beside], dim=1), *args[1:]), kwargs

    hook = unet.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _read(picture: str | Path, mask: str | Path) -> tuple[Image.Image, Image.Image]:
    found = []
    for path, mode in ((picture, "RGB"), (mask, "L")):
        try:
            with Image.open(path) as opened:
                found.append(ImageOps.exif_transpose(opened).convert(mode))
        except OSError as error:
            raise DataError(f"{path} cannot be read as a picture: {error}") from error
    return found[0], found[1]
