"""Pictures that are in a set twice: to the pixel, or re-saved, resized or a little changed."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

BITS = 6  # of 64 that may differ; Krawetz ("Kind of Like That", 2013): above 10 another picture
LEVELS = 12  # of 255 that the colours may differ, on average; drawings share hashes easily


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What is compared of a picture instead of its pixels."""

    pixels: str  # equal if and only if all pixels are
    shape: NDArray[np.uint8]  # (8,): the 64 bits of dHash
    colours: NDArray[np.float32]  # (192,): 8 x 8 pixels in RGB


def fingerprint(rgb: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB picture, whatever its file was."""
    digest = hashlib.sha256(rgb.tobytes())
    digest.update(repr(rgb.size).encode())
    small = reduced(rgb)
    colours = np.asarray(small.resize((8, 8), Image.Resampling.BOX), dtype=np.float32)
    return Fingerprint(digest.hexdigest(), dhash(small), colours.ravel())


def reduced(rgb: Image.Image) -> Image.Image:
    """A copy of 72 x 64 pixels, of which 9 x 8 and 8 x 8 are even parts."""
    return rgb.resize((72, 64), Image.Resampling.BOX, reducing_gap=2)


def dhash(rgb: Image.Image) -> NDArray[np.uint8]:
    """Whether each of 9 x 8 pixels is darker than its right neighbour, as 64 bits in 8 bytes."""
    grey = np.asarray(rgb.resize((9, 8), Image.Resampling.BOX).convert("L"))
    return np.packbits(grey[:, 1:] > grey[:, :-1])


def same(fingerprints: dict[str, Fingerprint]) -> list[list[str]]:
    """Groups of names, two or more, whose pixels are equal."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, print_ in fingerprints.items():
        groups[print_.pixels].append(name)
    return [names for names in groups.values() if len(names) > 1]


def alike(fingerprints: dict[str, Fingerprint]) -> list[list[str]]:
    """Groups of names, two or more, linked by fingerprints that differ little.

    Of pictures with equal pixels one should be given: `same` names the others.
    """
    names = list(fingerprints)
    if len(names) < 2:
        return []
    shapes = np.stack([fingerprints[name].shape for name in names])  # (N, 8)
    colours = np.stack([fingerprints[name].colours for name in names])  # (N, 192)
    leaders = list(range(len(names)))
    for row in tqdm(range(len(names) - 1), desc="comparing", leave=False):
        bits = np.bitwise_count(shapes[row + 1 :] ^ shapes[row]).sum(axis=1)
        near = row + 1 + np.flatnonzero(bits <= BITS)
        close = np.abs(colours[near] - colours[row]).mean(axis=1) <= LEVELS
        for other in near[close]:
            _join(leaders, row, int(other))
    groups: dict[int, list[str]] = defaultdict(list)
    for number, name in enumerate(names):
        groups[_leader(leaders, number)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def resembling(one: Fingerprint, others: Sequence[Fingerprint]) -> bool:
    """Whether the pixels of a picture are those of another, or its fingerprint differs little.

    Pictures without edges, such as those of one colour, resemble nothing but their equals.
    """
    if not others:
        return False
    equal = any(one.pixels == other.pixels for other in others)
    bits = np.bitwise_count(np.stack([it.shape for it in others]) ^ one.shape).sum(axis=1)
    levels = np.abs(np.stack([it.colours for it in others]) - one.colours).mean(axis=1)
    return equal or bool(one.shape.any() and ((bits <= BITS) & (levels <= LEVELS)).any())


def _join(leaders: list[int], one: int, other: int) -> None:
    first, second = sorted((_leader(leaders, one), _leader(leaders, other)))
    leaders[second] = first


def _leader(leaders: list[int], number: int) -> int:
    """The first of the group; the way to it is halved for the next one who asks."""
    while leaders[number] != number:
        leaders[number] = leaders[leaders[number]]
        number = leaders[number]
    return number
