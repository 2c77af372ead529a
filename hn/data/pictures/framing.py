"""What of a picture is trained on, at which size: the whole of it, or a part cut out; and how much
each place counts.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from hn.config import DataConfig
from hn.data.pictures import buckets
from hn.data.pictures.buckets import Sizes
from hn.errors import OptionError

ResizeMode = Literal["bucket", "crop", "pad", "stretch"]
CENTRE = (0.5, 0.5)
MOST_UNSEEN = 4  # a resized picture of more times the pixels that are seen of it is not made


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A rectangle of `size` in a picture that is `resized` first; all in pixels, width first.

    It may be larger than the picture; then the corner is negative, and the rest is padding.
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]  # left, top
    resample: Image.Resampling

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The rectangle as Pillow wants it: left, top, right, bottom."""
        (left, top), (width, height) = self.corner, self.size
        return left, top, left + width, top + height

    @property
    def visible(self) -> tuple[int, int, int, int]:
        """The part of the rectangle that lies within the resized picture."""
        (left, top, right, bottom), (across, down) = self.box, self.resized
        return max(left, 0), max(top, 0), min(right, across), min(bottom, down)

    def seen_corner(self, mirrored: bool) -> tuple[int, int]:
        """Left and top of what is visible in the resized picture, or in its mirror image.

        Where there is padding nothing was cut off: 0.
        """
        left, top, right, _ = self.visible
        return (self.resized[0] - right if mirrored else left), top

    def box_in(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """What is visible of a picture of `size` that is not resized yet, with parts of pixels."""
        left, top, right, bottom = self.visible
        (across, down), (width, height) = self.resized, size
        return (
            left * width / across,
            top * height / down,
            right * width / across,
            bottom * height / down,
        )


@dataclass(frozen=True)
class Fit:
    """How N pictures are fitted: arrays (N, 2) of width and height in pixels."""

    pictures: Sizes
    sizes: Sizes  # that are trained on
    resized: Sizes  # the pictures, before they are cut or padded

    @property
    def scale(self) -> NDArray[np.float64]:
        """How much each is resized (N,), along the side of which that is more."""
        return (self.resized / self.pictures).max(1)

    @property
    def enlarged(self) -> NDArray[np.bool_]:
        """Which of them get more pixels than they have, along any side (N,)."""
        return np.any(self.resized > self.pictures, axis=1)

    @property
    def cropped(self) -> NDArray[np.float64]:
        """The share of each picture that is cut off, 0..1 (N,)."""
        return 1 - np.minimum(self.sizes, self.resized).prod(1) / self.resized.prod(1)

    @property
    def padded(self) -> NDArray[np.float64]:
        """The share of each training picture that is padding, 0..1 (N,)."""
        return 1 - np.minimum(self.sizes, self.resized).prod(1) / self.sizes.prod(1)


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How pictures of any size become training pictures, given width and height as they are seen,
    so after an EXIF turn.
    """

    size: tuple[int, int]  # of bucket: only its area counts
    resize_mode: ResizeMode = "crop"
    step: int = 1  # of bucket: what sides are multiples of
    max_aspect_ratio: float = math.inf
    no_upscale: bool = False
    native_size: bool = False

    @classmethod
    def of(cls, config: DataConfig, step: int) -> Self:
        """As the settings say; `step` is the model's, for where no bucket_step is given.

        Raises `OptionError` if the resolution has no room for one step.
        """
        if config.resize_mode != "bucket":
            return cls(size=config.size, resize_mode=config.resize_mode)
        step = config.bucket_step or step
        if math.prod(config.size) < step**2 and not config.native_size:
            width, height = config.size
            raise OptionError(
                f"resolution {width} x {height} holds no bucket of {step} x {step} pixels, the "
                "smallest that bucket_step allows: give a larger resolution or a smaller step"
            )
        return cls(
            size=config.size,
            resize_mode="bucket",
            step=step,
            max_aspect_ratio=config.max_aspect_ratio,
            no_upscale=config.no_upscale,
            native_size=config.native_size,
        )

    def size_for(self, picture: tuple[int, int]) -> tuple[int, int]:
        """The size that a picture of this size is trained at."""
        return self.frame(picture).size

    def frame(self, picture: tuple[int, int], place: tuple[float, float] = CENTRE) -> Frame:
        """What is seen of a picture of this size; `place` (0..1 across, 0..1 down) chooses the part
        where some is cut off.
        """
        fit = self.fit([picture])
        (size,), (resized,) = _as_pairs(fit.sizes), _as_pairs(fit.resized)
        corner = (
            round((resized[0] - size[0]) * place[0]),
            round((resized[1] - size[1]) * place[1]),
        )
        stretch = self.resize_mode == "stretch"  # with the web UI's filter
        resample = Image.Resampling.BICUBIC if stretch else Image.Resampling.LANCZOS
        return Frame(size=size, resized=resized, corner=corner, resample=resample)

    def fit(self, pictures: ArrayLike) -> Fit:
        """Pictures (N, 2) of width and height, all at once: a million take about a second."""
        own = np.asarray(pictures, np.int64).reshape(-1, 2)
        sizes = np.broadcast_to(np.array(self.size, np.int64), own.shape)
        match self.resize_mode:
            case "bucket":
                return self._bucketed(own)
            case "crop":
                return Fit(own, sizes, _filling(own, sizes))
            case "pad":
                return Fit(own, sizes, _inside(own, sizes))
            case "stretch":
                return Fit(own, sizes, sizes)

    def _bucketed(self, own: Sizes) -> Fit:
        step, longest, area = self.step, self.max_aspect_ratio, math.prod(self.size)
        if self.native_size:
            return Fit(own, *buckets.own_sizes(own, step, longest, math.inf))
        sizes = buckets.nearest(own, buckets.bucket_sizes(area, step, longest))
        resized = _filling(own, sizes)
        if self.no_upscale:
            small = (sizes > own).any(1)
            sizes[small], resized[small] = buckets.own_sizes(own[small], step, longest, area)
        return Fit(own, sizes, resized)


def _filling(own: Sizes, sizes: Sizes) -> Sizes:
    """Pictures resized until both sides reach `sizes`."""
    scale = (sizes / own).max(1, keepdims=True)
    return np.maximum(sizes, np.rint(own * scale).astype(np.int64))


def _inside(own: Sizes, sizes: Sizes) -> Sizes:
    """Pictures resized until one side reaches `sizes`; a sliver keeps one pixel."""
    scale = (sizes / own).min(1, keepdims=True)
    return np.clip(np.rint(own * scale).astype(np.int64), 1, sizes)


def _as_pairs(sizes: Sizes) -> list[tuple[int, int]]:
    return [(width, height) for width, height in sizes.tolist()]


def cut_out(picture: Image.Image, frame: Frame) -> Image.Image:
    """What the frame shows of a picture, in its mode; padding repeats the pixels of the edge.

    Where more than three quarters of a resized picture would be thrown away, only what is seen is
    made: one of 1 x 40,000 pixels would become 10 gigapixels. In soft pictures the difference was
    at most 2 of 255 levels, in noise up to 44, where Pillow does its two passes in the other order
    and clips between them.
    """
    left, top, right, bottom = frame.visible
    size = right - left, bottom - top
    if math.prod(frame.resized) <= MOST_UNSEEN * math.prod(size):
        seen = picture.resize(frame.resized, frame.resample).crop(frame.visible)
    else:
        seen = picture.resize(size, frame.resample, frame.box_in(picture.size))
    if size == frame.size:
        return seen
    box = frame.box
    margins = [(top - box[1], box[3] - bottom), (left - box[0], box[2] - right)]
    pixels = np.asarray(seen)  # (h, w) or (h, w, channels)
    margins += [(0, 0)] * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, margins, mode="edge"))


def to_tensor(picture: Image.Image, frame: Frame) -> Tensor:
    """What the frame shows of an RGB picture, as a tensor (3, height, width) in -1..1."""
    pixels = np.array(cut_out(picture, frame))
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(127.5).sub(1.0)


def to_levels(alpha: Image.Image, frame: Frame, shape: tuple[int, int]) -> Tensor:
    """What the frame shows of an alpha channel, as levels (1, h, w) in 0..255 of latents (h, w).

    In one step from the channel's own size with the web UI's filter: resizing twice would give
    other levels. Only what is padded is made at the frame's size first.
    """
    height, width = shape
    if frame.visible == frame.box:
        box = frame.box_in(alpha.size)
        levels = alpha.resize((width, height), Image.Resampling.BICUBIC, box)
    else:
        levels = cut_out(alpha, frame).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.array(levels)).float()[None]


def picture_shares(frame: Frame, shape: tuple[int, int]) -> Tensor:
    """How much of each place (1, h, w) of latents (h, w) is picture, 0..1; the rest is padding.

    A place that is partly padding counts for its part. So all pixels of a picture count the same,
    which they would not if such a place counted wholly or not at all; and a sliver that fills no
    place is still learnt.
    """
    left, top, right, bottom = frame.visible
    across = _covered(left - frame.corner[0], right - frame.corner[0], frame.size[0], shape[1])
    down = _covered(top - frame.corner[1], bottom - frame.corner[1], frame.size[1], shape[0])
    return (down[:, None] * across[None, :])[None]


def _covered(first: int, last: int, side: int, places: int) -> Tensor:
    """Which share of each of `places` equal parts of a side (pixels) lies in first..last."""
    edges = torch.arange(places + 1, dtype=torch.float64) * side / places
    inside = edges.clamp(first, last)
    return (inside.diff() / edges.diff()).float()


def loss_weights(levels: Tensor, shares: Tensor) -> Tensor:
    """Weights (V, 1, h, w) of mean 1 from alpha levels and shares of one picture's crops.

    The rule of the levels is the web UI's, taken over all V crops together: the lowest counts
    nothing, so a crop that shows the least of the picture's alpha only is not learnt from. A
    constant alpha says nothing. Each weight is then multiplied with how much of the place is
    picture.
    """
    seen = levels[shares > 0]
    lowest = seen.min()
    weights = shares if lowest == seen.max() else (levels - lowest).clamp(min=0) * shares
    return weights / weights.mean()


def mask_weights(levels: Tensor, shares: Tensor) -> Tensor:
    """Weights (V, 1, h, w) of mean 1 from mask levels and shares of one picture's crops.

    Twice as bright counts twice as much, black counts nothing. Unlike with `loss_weights` the
    lowest level is not taken away: a mask of grey and white means that the grey counts too. Levels
    that are all the same say nothing.
    """
    seen = levels[shares > 0]
    weights = shares if seen.min() == seen.max() else levels * shares
    return weights / weights.mean()
