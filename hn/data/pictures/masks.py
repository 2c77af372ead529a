"""Mask files: `photo.mask.png` beside `photo.jpg` says how much each of its places counts."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hn.data.pictures.decoding import Decoded, Example, read_and_decode
from hn.errors import DataError

ENDING = ".mask.png"
TOLERANCE = 1  # percent, between the proportions of a picture and of its mask


@dataclass(frozen=True)
class Masks:
    """The mask files of a folder by the name of their picture, and those that have none."""

    of: dict[str, Path]
    alone: list[Path]
    faults: list[str]  # two pictures that would have one mask, a picture that would have two


def is_mask(path: Path) -> bool:
    """Whether a file is a mask by its name: it is no training picture then."""
    return path.name.lower().endswith(ENDING)


def find_masks(files: list[Path], pictures: list[Path]) -> Masks:
    """Which of the files are masks, and of which pictures."""
    by_stem: dict[str, Path] = {}
    faults: list[str] = []
    for path in filter(is_mask, files):
        first = by_stem.setdefault(path.name[: -len(ENDING)], path)
        if first != path:
            faults.append(f"{first.name} and {path.name} are masks of one picture: remove one")
    owners: dict[str, str] = {}
    for picture in pictures:
        if picture.stem in by_stem:
            owner = owners.setdefault(picture.stem, picture.name)
            if owner != picture.name:
                mask = by_stem[picture.stem].name
                faults.append(f"{owner} and {picture.name} share {mask}: rename one")
    of = {picture.name: by_stem[picture.stem] for picture in pictures if picture.stem in by_stem}
    used = set(of.values())
    return Masks(of, [path for path in by_stem.values() if path not in used], faults)


def read_mask(example: Example) -> tuple[bytes, Image.Image] | None:
    """The bytes of a picture's mask and its levels, of mode L, or None if it has no mask.

    The mask is turned as its own EXIF data say, so both are what a viewer shows of them. Colours
    count by their brightness; what is transparent counts as black. Raises `DataError` naming it.
    """
    if example.mask is None:
        return None
    content, decoded = read_and_decode(Example(_name(example), example.mask, ""))
    return content, _levels(decoded)


def check_mask(example: Example, levels: Image.Image, size: tuple[int, int]) -> None:
    """Hold a mask against the size of its picture, both upright. Raises `DataError` naming it."""
    if levels.getbbox() is None:
        raise DataError(f"{_name(example)} is all black, so nothing would be learnt: remove it")
    (width, height), (across, down) = levels.size, size
    if 100 * abs(width * down - height * across) > TOLERANCE * height * across:
        raise DataError(
            f"{_name(example)} is of {width} x {height} pixels, {example.name} of {across} x "
            f"{down}: their proportions must be the same, within {TOLERANCE} %"
        )


def _name(example: Example) -> str:
    """Of the mask: in the same place as its picture's."""
    assert example.mask is not None
    path = example.mask.get("path")
    if path is None:
        return f"the mask of {example.name}"
    return str(Path(example.name).with_name(Path(path).name))


def _levels(decoded: Decoded) -> Image.Image:
    if decoded.pixels.mode == "RGB":
        return decoded.pixels.convert("L")
    black = Image.new("RGBA", decoded.pixels.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, decoded.pixels).convert("L")
