"""One picture: from a file's bytes to 8-bit pixels, and what is known of the file."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from hn.data.pictures.guises import guise
from hn.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
MAX_PIXELS = 100_000_000  # refused from the header alone; a 10,000 x 10,000 picture passes
# What is too many, we decide. Pillow warns first, and filters of warnings know no threads.
Image.MAX_IMAGE_PIXELS = None
_PNG_DEPTH = 24  # where a PNG says how many bits a channel has
_PHONE = "MPO"  # the JPEG of phones, whose second picture is no second frame
# What the EXIF tag Orientation asks for, 1 being upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Example:
    """One picture and what is written about it."""

    name: str
    source: dict[str, Any]  # {"path": ..., "bytes": ...}, as datasets keeps an undecoded picture
    caption: str
    other_captions: tuple[str, ...] = ()  # that may be drawn instead
    mask: dict[str, Any] | None = None  # as `source`: what of it is to be learnt

    @property
    def captions(self) -> tuple[str, ...]:
        """All that may be drawn."""
        return self.caption, *self.other_captions


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of its picture, before everything is made 8 bits of RGB."""

    size: tuple[int, int]  # width and height, upright
    kind: str  # by content: one of FORMATS, or MPO, the JPEG of phones that holds a second picture
    mode: str  # Pillow's name
    deep: bool  # 16 bits for each channel
    frames: int  # the first is taken
    orientation: int  # of its EXIF data; 1: upright, or nothing is said

    @property
    def turned(self) -> bool:
        """Whether it is turned or mirrored."""
        return self.orientation in _TURNS

    @property
    def told(self) -> "Header":
        """The header alone, without the pixels of what was decoded."""
        return Header(**{name: getattr(self, name) for name in Header.__dataclass_fields__})

    @property
    def animated(self) -> bool:
        """Whether frames are left out."""
        return self.frames > 1 and self.kind != _PHONE

    def is_misnamed(self, name: str) -> bool:
        """Whether its ending is that of another format."""
        kind = KINDS.get(Path(name).suffix.lower())
        return kind not in (None, "JPEG" if self.kind == _PHONE else self.kind)


@dataclass(frozen=True, kw_only=True)
class Decoded(Header):
    """A picture, and what its file held."""

    pixels: Image.Image  # RGB, or RGBA where it has transparency; turned as its EXIF data say

    @property
    def rgb(self) -> Image.Image:
        """What is trained on: transparency laid on white."""
        if self.pixels.mode == "RGB":
            return self.pixels
        white = Image.new("RGBA", self.pixels.size, "white")
        return Image.alpha_composite(white, self.pixels).convert("RGB")


@dataclass(frozen=True)
class Survey:
    """What is known of a picture without decoding it."""

    content: bytes  # SHA-256 of its file
    size: tuple[int, int]  # width and height, upright
    mask: bytes | None = None  # SHA-256 of its mask's file, if that counts


def survey(example: Example) -> Survey:
    """Read the file and its header. Raises `DataError` naming the picture."""
    with _opened(example) as (picture, content):
        size, mask = _upright_size(picture, content), None
        if example.mask is not None:
            mask = hashlib.sha256(read_content(replace(example, source=example.mask))).digest()
        return Survey(hashlib.sha256(content).digest(), size, mask)


def upright_size(example: Example) -> tuple[int, int]:
    """Width and height of a picture, upright, from its header. Raises `DataError` naming it."""
    with _opened(example) as (picture, content):
        return _upright_size(picture, content)


def read_header(example: Example) -> Header:
    """What the file says, not decoded. Raises `DataError` naming the picture."""
    with _opened(example) as (picture, content):
        return Header(**_header(picture, content, _orientation_told(picture, content)))


def decode(example: Example) -> Decoded:
    """Decode a picture wholly. Raises `DataError` naming it."""
    return read_and_decode(example)[1]


def read_and_decode(example: Example) -> tuple[bytes, Decoded]:
    """The bytes of a picture, and decoded wholly. Raises `DataError` naming it."""
    with _opened(example) as (picture, content):
        picture.load()
        return content, _decoded(picture, content)


def open_picture(example: Example) -> Image.Image:
    """Decode a picture to 8-bit RGB, turned as its EXIF data say, transparency laid on white.

    Raises `DataError` naming it.
    """
    return decode(example).rgb


def open_with_alpha(example: Example) -> tuple[Image.Image, Image.Image]:
    """Decode a picture to its own RGB and its alpha channel, which is opaque if there is none.

    The colours beneath the transparency are kept, as the web UI keeps them: who weights the loss
    with a mask wants the picture learnt, half transparent places too, and not a mixture with white.
    Raises `DataError` naming it.
    """
    pixels = decode(example).pixels
    return pixels.convert("RGB"), pixels.convert("RGBA").getchannel("A")


def read_content(example: Example) -> bytes:
    """The bytes. Raises `OSError` for what is no regular file: a pipe would wait for ever."""
    content, path = example.source.get("bytes"), example.source.get("path")
    if content:
        return content
    if path is None or not Path(path).is_file():
        raise OSError("it is not a regular file")
    return Path(path).read_bytes()


@contextmanager
def _opened(example: Example) -> Iterator[tuple[Any, bytes]]:
    """A picture whose header is read, and the bytes of its file.

    Raises `DataError` naming it, also for what is raised while it is used.
    """
    content = b""
    try:
        content = read_content(example)
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(
                    f"{example.name}: {picture.width} x {picture.height} pixels are too many"
                )
            yield picture, content
    except DataError:
        raise
    except UnidentifiedImageError as error:  # its own message shows an object's address
        raise DataError(
            f"{example.name}: cannot be read as {', '.join(FORMATS)}: {_unidentified(content)}"
        ) from error
    except Exception as error:  # of a broken file: what its parts raise, zlib, struct, ...
        raise DataError(
            f"{example.name}: cannot be read as {', '.join(FORMATS)}: {error}"
        ) from error


def _unidentified(content: bytes) -> str:
    found = guise(content)
    return "cannot identify its content" + (f", which looks like {found}" if found else "")


def _upright_size(picture: Any, content: bytes) -> tuple[int, int]:
    """Of a picture whose header is read, as its EXIF data turn it."""
    return _turned(picture.size, _orientation_told(picture, content))


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation in range(5, 9) else size


def _orientation_told(picture: Any, content: bytes) -> int:
    """Of a picture whose header is read.

    Of a PNG, which may hold them at its end, Pillow decodes everything to find EXIF data.
    """
    told = picture.format != "PNG" or b"eXIf" in content or b"Raw profile" in content
    return _orientation(picture) if told else 1


def _orientation(picture: Any) -> int:
    """As the EXIF data say; 0 where they cannot be read, which turns nothing."""
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of broken data: what its parts raise, struct, SyntaxError, ...
        return 0
    return found if isinstance(found, int) else 0


def _header(picture: Any, content: bytes, orientation: int) -> dict[str, Any]:
    return {
        "size": _turned(picture.size, orientation),
        "kind": picture.format,
        "mode": picture.mode,
        "deep": picture.format == "PNG" and content[_PNG_DEPTH] == 16,
        "frames": getattr(picture, "n_frames", 1),
        "orientation": orientation,
    }


def _decoded(picture: Any, content: bytes) -> Decoded:
    """Of a loaded picture: only then are the EXIF data known that a PNG may hold at its end."""
    header = _header(picture, content, _orientation(picture))
    turn = _TURNS.get(header["orientation"])
    return Decoded(
        **header, pixels=_to_8_bits(picture if turn is None else picture.transpose(turn))
    )


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """RGB or RGBA. Raises `ValueError` for what is fully transparent."""
    if picture.mode.startswith("I"):  # 16 bits: `convert` would clip to white
        return Image.fromarray(
            (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
        ).convert("RGB")
    if picture.has_transparency_data:
        pixels = picture.convert("RGBA")
        if not pixels.getchannel("A").getbbox():
            raise ValueError("it is fully transparent")
        return pixels
    return picture.convert("RGB")
