"""Pictures from prompts: diffusers' pipeline around a base model, and labelled grids."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.inpainting import blank, reading
from hn.diffusion.conditions.views import BEAUTIFUL, PLAIN, SCORED
from hn.diffusion.loading.noising import GUIDANCE_RESCALE
from hn.storage import whole

DRAWN_AT_ONCE = 4  # pictures
_MARGIN = 4  # pixels
_TEXT_HEIGHT = 12


class Painter:
    """Draws the same prompts from the same noise every time, without touching any global generator.

    `prompts` are P, `negative` is the one that guidance leads away from, `size` is width and height
    in pixels. Without a `scheduler`, the base model's own; with zero terminal SNR the guidance is
    rescaled. An inpainting model paints on the `canvas` (1, 1 + C, h, w), by default a blank one.
    """

    def __init__(
        self,
        base: BaseModel,
        prompts: Condition,
        negative: Condition,
        *,
        size: tuple[int, int],
        steps: int,
        guidance_scale: float,
        seed: int,
        scheduler: Any = None,
        progress: bool = False,
        canvas: Tensor | None = None,
    ) -> None:
        self._base = base
        self._canvas = blank(base, size) if base.inpainting and canvas is None else canvas
        self._prompts = prompts
        self._negative = negative
        self._settings: dict[str, Any] = {
            "width": size[0],
            "height": size[1],
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
        }
        if base.zero_terminal_snr:
            self._settings["guidance_rescale"] = GUIDANCE_RESCALE
        self._seed = seed
        self._progress = progress
        self._pipeline = bare_pipeline(base, scheduler or base.scheduler)

    def draw(self) -> list[Image.Image]:
        """One picture of each prompt, with what is attached to the UNet as it is attached now."""
        return [picture for latents in self._parts() for picture in self._base.decode(latents)]

    def latents(self) -> Tensor:
        """The latents (P, C, h, w) that the pictures would be decoded of."""
        return torch.cat([*self._parts()])

    def _parts(self) -> Iterator[Tensor]:
        """Latents of as many pictures as are drawn at once."""
        # diffusers mixes up the scores of several pictures: those of the refiner come one by one
        at_once = 1 if self._base.numbers_told == SCORED else DRAWN_AT_ONCE
        starts = range(0, len(self._prompts), at_once)
        for start in tqdm(starts, "drawing", leave=False, disable=not self._progress):
            yield self._draw(range(start, min(start + at_once, len(self._prompts))))

    @torch.no_grad()
    def _draw(self, rows: range) -> Tensor:
        generators = [torch.Generator().manual_seed(self._seed + row) for row in rows]
        prompts = self._prompts[rows.start : rows.stop]
        with reading(self._base.unet, self._canvas):
            return self._pipeline(
                **self._embeds(prompts, "prompt"),
                **self._embeds(self._negative.repeat(len(rows)), "negative_prompt"),
                **self._told(),
                generator=generators,
                latents=self._noise(generators),
                output_type="latent",
                **self._settings,
            ).images

    def _noise(self, generators: list[torch.Generator]) -> Tensor | None:
        """What painting begins with (B, C, h, w): the pipeline would draw some for the canvas, too.
        Without a canvas that is left to it.
        """
        if self._canvas is None:
            return None
        unet = self._base.unet
        shape = (len(generators), unet.config["out_channels"], *self._canvas.shape[-2:])
        return randn_tensor(shape, generator=generators, device=self._base.device, dtype=unet.dtype)

    def _embeds(self, of: Condition, what: str) -> dict[str, Tensor]:
        """Texts as diffusers' pipelines take them: of a "prompt", or of a "negative_prompt"."""
        named = {f"{what}_embeds": of.context}
        if of.pooled is not None:
            named[f"{what.removesuffix('prompt')}pooled_prompt_embeds"] = of.pooled
        return {name: it.to(self._base.device, self._base.unet.dtype) for name, it in named.items()}

    def _told(self) -> dict[str, Any]:
        """What the refiner is told in place of a size; what all others are told follows of it."""
        if self._base.numbers_told != SCORED:
            return {}
        own = self._settings["height"], self._settings["width"]
        negative = {"negative_original_size": own, "negative_target_size": (PLAIN,)}
        return {"original_size": own, "target_size": (BEAUTIFUL,), **negative}


def bare_pipeline(base: BaseModel, scheduler: Any) -> Any:
    """Diffusers' pipeline around the base model's UNet, for given contexts, up to the latents."""
    parts: dict[str, Any] = {
        "vae": None,  # latents are decoded by us; a parked autoencoder would set the device
        "text_encoder": None,  # contexts are given
        "tokenizer": None,
        "unet": base.unet,
        "scheduler": scheduler,
    }
    # their annotations know neither None nor DDIM
    one: Any = StableDiffusionPipeline
    xl: Any = StableDiffusionXLPipeline
    if base.numbers_told:
        pipeline = xl(text_encoder_2=None, tokenizer_2=None, add_watermarker=False, **parts)
    else:
        none = {"safety_checker": None, "feature_extractor": None}
        pipeline = one(requires_safety_checker=False, **none, **parts)
    pipeline.vae_scale_factor = base.downscaling
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def grid(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str]
) -> Image.Image:
    """Labelled rows and columns of pictures of one size."""
    width, height = rows[0][0].size
    enlarged = max(1, 128 // width)  # tiny pictures are shown larger
    width, height = width * enlarged, height * enlarged
    row_height = height + _TEXT_HEIGHT + 2 * _MARGIN
    sheet = Image.new(
        "RGB",
        (
            len(column_labels) * (width + _MARGIN) + _MARGIN,
            _TEXT_HEIGHT + 2 * _MARGIN + len(rows) * row_height,
        ),
        "white",
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT_HEIGHT - 2)
    for column, label in enumerate(column_labels):
        pen.text((_MARGIN + column * (width + _MARGIN), _MARGIN), label, "black", font)
    for row, (pictures, label) in enumerate(zip(rows, row_labels, strict=True)):
        top = _TEXT_HEIGHT + 2 * _MARGIN + row * row_height
        pen.text((_MARGIN, top), _shortened(label, font, sheet.width - 2 * _MARGIN), "black", font)
        for column, picture in enumerate(pictures):
            place = (_MARGIN + column * (width + _MARGIN), top + _TEXT_HEIGHT + _MARGIN)
            sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), place)
    return sheet


def save_picture(picture: Image.Image, path: Path, *, parameters: str | None = None) -> None:
    """Write a PNG, with the text of that name in it. Raises `StorageError`; never half a file."""
    about = PngInfo()
    if parameters is not None:
        about.add_text("parameters", parameters)
    with whole(path, "another folder") as file:
        picture.save(file, format="PNG", pnginfo=about)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of the text as fits into `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
