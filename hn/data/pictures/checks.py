"""Every picture and mask decoded once, before any model is loaded: what cannot be used, and what is
odd.
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from PIL import Image

from hn.data.cache.index import Contents
from hn.data.parallel import in_order, thread_count
from hn.data.pictures.decoding import Decoded, Example, Header, decode, read_content, read_header
from hn.data.pictures.images import examples
from hn.data.pictures.masks import check_mask, read_mask
from hn.data.tally import Tally
from hn.errors import DataError, listed

NONE = Contents()
MAX_PROPORTION = 100  # long side / short side: what is longer is no picture
COMPARED = 2**20  # pixels: of larger pictures only rows at even distances are compared
_ODD = {
    "misnamed": "of another format than their ending says, read all the same",
    "deep": "of 16 bits a channel, made 8",
    "animated": "with several frames, of which the first is used",
    "turned": "turned or mirrored as their EXIF data say",
    "odd_exif": "with EXIF data that name no direction, taken as upright",
}


@dataclass(frozen=True)
class Checked:
    """The pictures that can be used, and the width and height of each, upright (N, 2)."""

    dataset: Dataset
    sizes: NDArray[np.int32]


@dataclass(frozen=True)
class _Look:
    """What was found of one picture."""

    name: str
    faults: list[str]
    header: Header | None = None
    likeness: int = 0  # 64 bits that stand for its pixels, or for the file of one that is known


@dataclass
class _Findings:
    """What was found of all of them."""

    faults: list[str] = field(default_factory=list)
    unusable: list[int] = field(default_factory=list)
    odd: dict[str, list[str]] = field(default_factory=dict)
    likenesses: array = field(default_factory=lambda: array("Q"))
    sizes: array = field(default_factory=lambda: array("i"))

    def add(self, row: int, look: _Look) -> None:
        """Take in the look at the picture of a row."""
        if look.faults or look.header is None:
            self.faults += look.faults
            self.unusable.append(row)
            return
        self.sizes.extend(look.header.size)
        self.likenesses.append(look.likeness)
        for kind in _oddities(look.name, look.header):
            self.odd.setdefault(kind, []).append(look.name)


def check_pictures(
    dataset: Dataset,
    known: Contents = NONE,
    *,
    on_bad_image: Literal["stop", "drop"] = "stop",
    min_side: int = 1,
    about: str = "train",
    tally: Tally | None = None,
) -> Checked:
    """Decode every picture and every mask once, but pictures that a cache knows only for masks.

    What is odd goes into the `tally`, and with "drop" also what cannot be used. Raises `DataError`
    listing all pictures and masks that cannot be used, or if nothing is left.
    """
    tally, found = tally or Tally(), _Findings()

    def look(example: Example) -> _Look:
        return _look_at(example, known, min_side)

    looks = in_order(look, examples(dataset, "checking pictures"), thread_count())
    for row, seen in enumerate(looks):
        found.add(row, seen)
    count = f"{len(found.unusable)} of {len(dataset)} pictures cannot be used; mend or remove them"
    if found.faults and (on_bad_image == "stop" or len(found.unusable) == len(dataset)):
        remedy = ", or set on_bad_image to drop" if on_bad_image == "stop" else ""
        raise DataError(listed(count + remedy, found.faults))
    tally.add(about, "dropped", "left out (on_bad_image drop)", found.faults, whole=True)
    usable = np.setdiff1d(np.arange(len(dataset)), found.unusable)
    kept = dataset.select(usable) if found.unusable else dataset
    _tell(tally, about, found, kept)
    return Checked(kept, np.array(found.sizes, np.int32).reshape(-1, 2))


def check_size(name: str, size: tuple[int, int], min_side: int) -> None:
    """Refuse what is too small or too long to show anything. Raises `DataError` naming it."""
    width, height = size
    if min(size) < min_side:
        raise DataError(f"{name}: {width} x {height} pixels are too few; min_side is {min_side}")
    if max(size) > MAX_PROPORTION * min(size):
        raise DataError(
            f"{name}: {width} x {height} pixels are longer than {MAX_PROPORTION} to 1: cut it"
        )


def _look_at(example: Example, known: Contents, min_side: int) -> _Look:
    """Decode a picture and its mask; in a thread of its own."""
    header, likeness, faults = None, 0, []
    try:
        digest = _known_digest(example, known)
        if digest is None:
            header = decode(example)
            likeness = _likeness(header)
        else:
            header, likeness = read_header(example), int.from_bytes(digest[:8])
        check_size(example.name, header.size, min_side)
    except DataError as error:
        faults.append(str(error))
    faults += _mask_faults(example, header)
    return _Look(example.name, faults, header and header.told, likeness)


def _mask_faults(example: Example, header: Header | None) -> Iterator[str]:
    try:
        mask = read_mask(example)
        if mask is not None and header is not None:
            check_mask(example, mask[1], header.size)
    except DataError as error:
        yield str(error)


def _known_digest(example: Example, known: Contents) -> bytes | None:
    """SHA-256 of the file, if a cache knows it."""
    if not len(known):
        return None
    try:
        digest = hashlib.sha256(read_content(example)).digest()
    except OSError:
        return None  # decoding will say so
    return digest if digest in known else None


def _likeness(decoded: Decoded) -> int:
    pixels: Image.Image = decoded.pixels
    rows = np.asarray(pixels)[:: -(-pixels.width * pixels.height // COMPARED)]
    digest = hashlib.sha256(f"{pixels.mode} {pixels.size}".encode() + rows.tobytes()).digest()
    return int.from_bytes(digest[:8])


def _oddities(name: str, header: Header) -> Iterator[str]:
    holds = {
        "misnamed": header.is_misnamed(name),
        "deep": header.deep,
        "animated": header.animated,
        "turned": header.turned,
        "odd_exif": header.orientation != 1 and not header.turned,
    }
    yield from (kind for kind, is_so in holds.items() if is_so)
    if header.mode not in ("RGB", "RGBA") and not header.deep:
        yield f"mode_{header.mode}"


def _tell(tally: Tally, about: str, found: _Findings, kept: Dataset) -> None:
    for kind, names in found.odd.items():
        words = _ODD.get(kind) or f"of mode {kind.removeprefix('mode_')}, made RGB"
        tally.add(about, kind, f"{about}: {words}", names)
    _, first, counts = np.unique(
        np.frombuffer(found.likenesses, np.uint64), return_index=True, return_counts=True
    )
    repeated = np.setdiff1d(np.arange(len(kept)), first)
    if len(repeated):
        names = [kept[int(row)]["name"] for row in repeated[:100]]
        words = f"{about}: with the pixels of another, so they count more"
        tally.add(about, "same_pixels", words, names, count=int((counts - 1).sum()))
