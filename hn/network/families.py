"""Which base models a hypernetwork is for, told by the widths of the contexts that it rewrites.

The width of the text belongs to one family, those of self-attention to several; 1280 alone is a
width of each. A host skips the widths that it lacks, so a file of another family is not refused
there: it does nothing, or half of what it should.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hn.errors import ModelError
from hn.network.module import Hypernetwork


@dataclass(frozen=True)
class Family:
    """Base models whose attention has the same widths: `text`, and `own` of self-attention."""

    name: str
    text: int
    own: tuple[int, ...]

    @property
    def dims(self) -> frozenset[int]:
        """All of them."""
        return frozenset({self.text, *self.own})


SD_1 = Family("Stable Diffusion 1", 768, (320, 640, 1280))
SD_2 = Family("Stable Diffusion 2", 1024, (320, 640, 1280))
XL = Family("Stable Diffusion XL", 2048, (640, 1280))
XL_REFINER = Family("the refiner of Stable Diffusion XL", 1280, (768, 1536))
FAMILIES = (SD_1, SD_2, XL, XL_REFINER)


def candidates(dims: Iterable[int]) -> list[Family]:
    """The families that have all of these widths."""
    return [family for family in FAMILIES if family.dims.issuperset(dims)]


def of_base(dims: Iterable[int]) -> Family | None:
    """The family of a base model with exactly these widths; None: one of its own."""
    return next((family for family in FAMILIES if family.dims == frozenset(dims)), None)


def made_for(dims: Iterable[int]) -> str:
    """What a hypernetwork of these widths is for, in words.

    >>> made_for((320, 640, 1280))
    'Stable Diffusion 1 or Stable Diffusion 2'
    """
    return " or ".join(family.name for family in candidates(dims)) or "another base model"


def described(dims: Sequence[int]) -> str:
    """The widths of a base model, and its family if it is one of those known."""
    family = of_base(dims)
    widths = f"the widths {tuple(dims)}"
    return widths if family is None else f"{widths}, which is {family.name}"


def is_of_another(dims: Iterable[int], base: Iterable[int]) -> bool:
    """Whether a hypernetwork reads the text of another family than the base model's."""
    family, own = of_base(base), frozenset(dims)
    possible = candidates(own)
    if family is None or not possible or family in possible:
        return False
    return all(it.text in own for it in possible)


def check_pairing(nets: Iterable[Hypernetwork], base: Sequence[int]) -> None:
    """Warn of widths that a base model lacks, of which a file for several may have some.

    Raises `ModelError` for a hypernetwork that has no other, or that is for another family: one for
    the text of Stable Diffusion 1 shares most of its widths with a 2, and would change its pictures
    without ever having seen one.
    """
    for net in nets:
        unknown = sorted(set(net.dims) - set(base))
        name = net.provenance.name or "the hypernetwork"
        if len(unknown) == len(net.dims) or is_of_another(net.dims, base):
            raise ModelError(
                f"{name} has the widths {net.dims}, so it is for {made_for(net.dims)}"
                f"{_trained_on(net)}; this base model has {described(base)}: take a base model or "
                "a hypernetwork of the same family"
            )
        if unknown:
            warnings.warn(
                f"{name} is for {made_for(net.dims)}: the UNet has no attention of width "
                f"{unknown}, so they do nothing",
                stacklevel=5,
            )


def _trained_on(net: Hypernetwork) -> str:
    base = net.provenance.sd_checkpoint_name
    return f" (trained on {base})" if base else ""
