"""The sizes that pictures of different proportions are trained at: of about equal area, with sides
that are multiples of a step.

A batch holds pictures of one size only; so there are few sizes, and each picture takes the one
whose proportions are nearest to its own.
"""

import json
import math
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hn.errors import ModelError

Sizes = NDArray[np.int64]  # (N, 2): width, height
USUAL_STEP = 64  # of Stable Diffusion 1 and 2: the autoencoder's 8 times the UNet's 8


def step_of(model: str, revision: str | None = None) -> int:
    """What the sides of a model's pictures should be multiples of, read from its configuration.

    The autoencoder's downscaling times the UNet's; `USUAL_STEP` where a folder has no such files or
    a hub id was never loaded. Raises `ModelError` for files that cannot be read.
    """
    unet, vae = (_configuration(model, part, revision) for part in ("unet", "vae"))
    if unet is None or vae is None:
        return USUAL_STEP
    try:
        levels = len(vae["block_out_channels"]) - 1 + len(unet["block_out_channels"]) - 1
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"the configuration of '{model}' lacks block_out_channels in unet or vae: {error}"
        ) from error
    return 2**levels


def _configuration(model: str, part: str, revision: str | None) -> Any:
    """A part's configuration from the folder, or from what was fetched of a hub model."""
    path: Any = Path(model) / part / "config.json"
    if not Path(model).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(model, f"{part}/config.json", revision=revision)
        except HFValidationError:  # no hub id either, which the base model will say
            return None
        if not isinstance(path, str):
            return None
    elif not path.is_file():
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error


@cache
def bucket_sizes(area: int, step: int, max_aspect_ratio: float) -> tuple[tuple[int, int], ...]:
    """All sizes (width, height) of at most `area` pixels, the widest proportions last.

    Of every width the tallest that fits, and the same turned; and the largest square, since many
    pictures are squares. Of sizes with the same proportions only the largest. None if `area` holds
    no square of the step.
    """
    most = area // step**2  # all counted in steps
    square = math.isqrt(most)
    if not square:
        return ()
    found = {(square, square)}
    for width in range(1, most + 1):
        height = most // width
        if width <= max_aspect_ratio * height and height <= max_aspect_ratio * width:
            found |= {(width, height), (height, width)}
    largest: dict[Fraction, tuple[int, int]] = {}
    for width, height in sorted(found):
        largest[Fraction(width, height)] = (width * step, height * step)
    return tuple(size for _, size in sorted(largest.items()))


def nearest(pictures: Sizes, sizes: tuple[tuple[int, int], ...]) -> Sizes:
    """For each picture (N, 2) the one of `sizes` with the nearest proportions, by their logarithms.

    One just between two takes the larger.
    """
    places = np.searchsorted(_boundaries(sizes), pictures[:, 0] / pictures[:, 1], side="right")
    return np.array(sizes, np.int64)[places]


@cache
def _boundaries(sizes: tuple[tuple[int, int], ...]) -> NDArray[np.float64]:
    """Where the proportions of one size end and those of the next begin: the geometric means."""
    return np.array([_boundary(low, high) for low, high in pairwise(sizes)])


def _boundary(low: tuple[int, int], high: tuple[int, int]) -> float:
    """The geometric mean of two proportions; proportions that are equal to it go to the larger."""
    square = Fraction(low[0] * high[0], low[1] * high[1])
    # In lowest terms, so that a mean that is a fraction is met exactly.
    mean = math.sqrt(square.numerator) / math.sqrt(square.denominator)
    return math.nextafter(mean, math.inf) if math.prod(low) > math.prod(high) else mean


def own_sizes(
    pictures: Sizes, step: int, max_aspect_ratio: float, area: float
) -> tuple[Sizes, Sizes]:
    """Sizes (N, 2) cut out of pictures (N, 2) as they are, and what the pictures are resized to.

    Those of more than `area` pixels are made smaller, those with a side below `step` larger, both
    no more than is needed; all others keep their pixels. Both sides are rounded down to the step,
    the longer one also to the `max_aspect_ratio`.
    """
    short, long = pictures.min(1), pictures.max(1)
    kept = np.minimum(long, short * max_aspect_ratio)
    scale = np.maximum(np.minimum(1, np.sqrt(area / (short * kept))), step / short)  # (N,)
    resized = np.rint(pictures * scale[:, None]).astype(np.int64)
    across = resized.min(1) // step
    along = np.minimum(resized.max(1) // step, np.floor(max_aspect_ratio * across))
    along = np.minimum(along, np.floor(area / (across * step**2))).astype(np.int64)
    wide = pictures[:, 0] >= pictures[:, 1]
    sides = np.where(wide, [along, across], [across, along]).T  # (N, 2)
    return sides * step, resized
