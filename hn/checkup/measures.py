"""What a picture measures: its file, its frame, and what of it the model will see."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageStat

from hn.checkup.likeness import reduced
from hn.data.pictures.decoding import Decoded
from hn.data.pictures.framing import Frame, cut_out

TILES = 4  # in each direction, of which the sharpest counts


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Numbers of one picture; sizes are those after its EXIF turn."""

    width: int
    height: int
    kind: str  # by content, such as "JPEG"
    mode: str  # of the file, by Pillow's name
    deep: bool  # 16 bits for each channel
    frames: int
    animated: bool
    turned: bool
    misnamed: bool  # ending of another format
    bucket: tuple[int, int]  # width and height that it is trained at
    elongation: float  # long side / short side
    enlargement: float  # of the side that is resized most; above 1 it is enlarged
    cropped: float  # share of the picture that the frame cuts off, 0..1
    padded: float  # share of what is seen that is padding, 0..1
    distortion: float  # how much more one side is resized than the other, 1 and up
    sharpness: float  # of the sharpest channel of what the frame shows
    contrast: float  # of what the frame shows: standard deviation of the liveliest channel, 0..128
    colour: float  # largest difference between channels, 0..255; 0 is grey
    opacity: float  # mean alpha, 0..1


def measure(name: str, decoded: Decoded, rgb: Image.Image, frame: Frame) -> Measures:
    """Measure a picture, given `rgb` as it is trained on and the frame that will be seen of it."""
    (width, height), (across, down) = rgb.size, frame.resized
    left, top, right, bottom = frame.visible
    shown, seen = (right - left) * (bottom - top), cut_out(rgb, frame)
    small = np.asarray(reduced(rgb))
    scales = across / width, down / height
    return Measures(
        width=width,
        height=height,
        kind=decoded.kind,
        mode=decoded.mode,
        deep=decoded.deep,
        frames=decoded.frames,
        animated=decoded.animated,
        turned=decoded.turned,
        misnamed=decoded.is_misnamed(name),
        bucket=frame.size,
        elongation=max(rgb.size) / min(rgb.size),
        enlargement=max(scales),
        cropped=1 - shown / (across * down),
        padded=1 - shown / (frame.size[0] * frame.size[1]),
        distortion=max(scales) / min(scales),
        sharpness=max(map(sharpness, seen.split())),
        contrast=max(ImageStat.Stat(seen).stddev),
        colour=float(np.ptp(small, axis=2).max()),
        opacity=_opacity(decoded.pixels),
    )


def sharpness(channel: Image.Image) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al., 2000) in the sharpest part of a channel.

    Of 4 x 4 parts, since a portrait before a soft background and a drawing of few lines are not
    blurred: all over such a drawing the variance was 35, in its sharpest part 142. A channel, and
    not the grey of all, since colours that are equally bright have no edge there.
    """
    levels = np.asarray(channel, dtype=np.float32)  # (h, w)
    around = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:]
    laplacian = around - 4 * levels[1:-1, 1:-1]  # (h - 2, w - 2)
    rows = np.array_split(laplacian, TILES)
    return max(float(tile.var()) for row in rows for tile in np.array_split(row, TILES, axis=1))


def _opacity(pixels: Image.Image) -> float:
    if pixels.mode == "RGB":
        return 1.0
    return float(np.asarray(pixels.getchannel("A")).mean()) / 255
