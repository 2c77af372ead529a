"""What a demo picture shows, measured from its pixels: colours, shape, and how *neon* it is.

Used to hold the demo's base model to its prompts (`tools/make_demo_model.py`) and to say how far a
hypernetwork moved it towards the style. No learnt judge: the nearest palette colour, and template
matching for the shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from hn.demo.pictures import (
    PALETTE,
    SHAPES,
    Scene,
    caption,
    is_held_out,
    object_mask,
    sample_scene,
)

Array = NDArray[np.float32]

DRAWN_AT_ONCE = 20  # pictures
TEMPLATE = 24  # pixels: side of the box that masks are compared in
DARK = 90.0  # a pixel whose brightest channel is below this is dark; a plain picture has none


@dataclass(frozen=True)
class Obedience:
    """Shares of pictures, 0 to 1."""

    background: float
    colour: float
    shape: float


@dataclass(frozen=True)
class Reading:
    """What the pixels of one picture say."""

    background: str
    colour: str
    shape: str


def read_picture(picture: Image.Image) -> Reading:
    """Read a plain picture: the ground from its border, the object from what differs."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    ground = np.median(_border(pixels), axis=0)
    distance = np.linalg.norm(pixels - ground, axis=-1)
    mask = distance > max(40.0, 0.5 * float(np.percentile(distance, 98)))
    colour = np.median(pixels[mask], axis=0) if mask.any() else ground
    return Reading(nearest_colour(ground), nearest_colour(colour), nearest_shape(mask))


def nearest_colour(rgb: Array) -> str:
    """The palette colour closest to `rgb` (3,) in plain RGB distance."""
    return min(PALETTE, key=lambda name: float(np.linalg.norm(rgb - np.array(PALETTE[name]))))


def nearest_shape(mask: NDArray[np.bool_]) -> str:
    """The shape whose template overlaps `mask` (H, W) best, both fitted to the same box; "nothing"
    if it is empty.
    """
    if mask.sum() < 12:
        return "nothing"
    fitted = _fit(mask)
    return max(SHAPES, key=lambda shape: _overlap(fitted, _template(shape)))


def dark_share(picture: Image.Image) -> float:
    """The style statistic: the share of dark pixels, 0 in plain pictures, 0.9 in neon ones."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return float((pixels.max(axis=-1) < DARK).mean())


def obedience(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> Obedience:
    """How many of the pictures show the ground, the colour and the shape that were asked for."""
    readings = list(zip(map(read_picture, pictures), scenes, strict=True))
    return Obedience(
        background=sum(r.background == scene.background for r, scene in readings) / len(readings),
        colour=sum(r.colour == scene.colour for r, scene in readings) / len(readings),
        shape=sum(r.shape == scene.shape for r, scene in readings) / len(readings),
    )


def held_out_scenes(count: int, seed: int, shapes: Sequence[str] = SHAPES) -> list[Scene]:
    """Scenes whose shape, colour and ground the base model never saw together."""
    rng, scenes = Random(seed), []
    while len(scenes) < count:
        scene = sample_scene(rng, shapes)
        if is_held_out(scene):
            scenes.append(scene)
    return scenes


def draw(pipeline: Any, scenes: Sequence[Scene], seed: int = 0) -> list[Image.Image]:
    """One picture of each scene from its caption: guidance 4, 25 DDIM steps, noise from `seed`."""
    pictures: list[Image.Image] = []
    for start in tqdm(range(0, len(scenes), DRAWN_AT_ONCE), desc="drawing", leave=False):
        part = scenes[start : start + DRAWN_AT_ONCE]
        generators = [torch.Generator().manual_seed(seed + start + row) for row in range(len(part))]
        pictures += pipeline(
            [caption(scene) for scene in part],
            guidance_scale=4.0,
            num_inference_steps=25,
            generator=generators,
        ).images
    return pictures


def _border(pixels: Array, width: int = 2) -> Array:
    """The pixels (N, 3) of the outermost `width` rows and columns."""
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    inside[width:-width, width:-width] = True
    return pixels[~inside]


def _fit(mask: NDArray[np.bool_]) -> Array:
    """The bounding box of `mask`, resized to `TEMPLATE` x `TEMPLATE`, values 0 to 1."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray(box.astype(np.uint8) * 255).resize(
        (TEMPLATE, TEMPLATE), Image.Resampling.BOX
    )
    return np.asarray(image, dtype=np.float32) / np.float32(255)


@cache
def _template(shape: str) -> Array:
    scene = Scene(shape=shape, colour="red", background="blue", size="small")
    return _fit(np.asarray(object_mask(scene)) > 127)


def _overlap(first: Array, second: Array) -> float:
    """Intersection over union of two soft masks."""
    return float(np.minimum(first, second).sum() / np.maximum(first, second).sum())
