"""Where to cut: pure geometry, in pixels of the source.

Every crop is one `box` of the source resampled to its size in one go, so that nothing is rounded
between a resize and a cut, as it is in the web UI.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

Size = tuple[int, int]  # width, height
Point = tuple[float, float]  # across, down
Box = tuple[float, float, float, float]  # left, top, right, bottom

_ROUNDING = 1e-9  # what a quotient of exact numbers may be off


@dataclass(frozen=True)
class Crop:
    """A picture to make: the `box` of the source, resampled to `size`; `mode` says by whose wish.

    `box` may have fractions of pixels and never leaves the source.
    """

    mode: str
    box: Box
    size: Size

    @property
    def scale(self) -> float:
        """Pixels made of one pixel of the source; above 1 is an enlargement."""
        return self.size[0] / (self.box[2] - self.box[0])

    def cut(self, picture: Image.Image) -> Image.Image:
        """Make it of the picture whose size it was planned for."""
        return picture.resize(self.size, Image.Resampling.LANCZOS, box=self.box)


def whole(source: Size) -> Box:
    """All of the source."""
    return (0, 0, *source)


def centred(source: Size, size: Size) -> Box:
    """The middle box of `size`'s proportions that fills the source's width or height."""
    return around(source, size, (source[0] / 2, source[1] / 2))


def around(source: Size, size: Size, focus: Point) -> Box:
    """The largest box of `size`'s proportions, its middle as near to `focus` as the source lets."""
    spans = _spans(source, size)
    left, top = (
        min(max(at - span / 2, 0), side - span)
        for at, span, side in zip(focus, spans, source, strict=True)
    )
    return left, top, left + spans[0], top + spans[1]


def kept_share(source: Size, size: Size) -> float:
    """The share of the source that its largest box of `size`'s proportions keeps, 0 to 1."""
    proportions = source[0] * size[1] / (source[1] * size[0])
    return min(proportions, 1 / proportions)


def split(source: Size, size: Size, overlap: float) -> list[Box]:
    """Boxes of `size`'s proportions, evenly from one end of the source's excess side to the other.

    As few as possible, two at least, with at least the share `overlap` (0..0.9) of each repeated by
    its neighbour: for length h and span H, ceil((h - H*overlap) / (H - H*overlap)).
    """
    width, height = _spans(source, size)
    across = width < source[0]
    length, span = (source[0], width) if across else (source[1], height)
    count = math.ceil((length - span * overlap) / (span * (1 - overlap)) - _ROUNDING)
    count = max(count, 2)
    starts = [(length - span) * number / (count - 1) for number in range(count)]
    ends = [min(start + span, length) for start in starts]
    if across:
        return [(start, 0, end, source[1]) for start, end in zip(starts, ends, strict=True)]
    return [(0, start, source[0], end) for start, end in zip(starts, ends, strict=True)]


def best_size(
    source: Size, sizes: Sequence[Size], *, threshold: float, objective: str
) -> Size | None:
    """The size whose proportions are off by at most `threshold` (0..1); None if there is none.

    `objective` "area" prefers the largest, of equals the least error; "error" the other way round.
    """
    rated = [(1 - kept_share(source, size), size) for size in sizes]
    fitting = [(error, size) for error, size in rated if error <= threshold]
    if not fitting:
        return None
    if objective == "area":
        return max(fitting, key=lambda rating: (math.prod(rating[1]), -rating[0]))[1]
    return max(fitting, key=lambda rating: (-rating[0], math.prod(rating[1])))[1]


def _spans(source: Size, size: Size) -> tuple[float, float]:
    """Width and height of the largest box of `size`'s proportions inside the source."""
    if size[0] * source[1] >= size[1] * source[0]:
        return source[0], size[1] * source[0] / size[0]
    return size[0] * source[1] / size[1], source[1]
