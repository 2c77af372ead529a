"""What is encoded of a picture: what its frames show, and that with holes in it."""

from dataclasses import dataclass

from torch import Tensor

from hn.data.cache.store import key_of
from hn.data.pictures.decoding import Example
from hn.data.pictures.framing import Frame
from hn.data.pictures.holes import Hole
from hn.diffusion.conditions import inpainting


@dataclass(frozen=True)
class Variant:
    """One thing to encode of a picture, and the key of the result: of what a frame shows the
    moments, or with a hole in it the canvas.
    """

    key: bytes
    frame: Frame
    mirrored: bool
    hole: Hole | None = None


@dataclass(frozen=True)
class Job:
    """Variants of a picture to encode."""

    example: Example
    variants: list[Variant]


@dataclass(frozen=True)
class Encoded:
    """What a step of `Encoder.encode` brought: moments (2, C, h, w) and canvases (1 + C, h, w) by
    key, or a fault.
    """

    moments: dict[bytes, Tensor]
    read: int = 0  # pictures
    fault: str | None = None


@dataclass(frozen=True)
class Pixels:
    """What the autoencoder reads: (3, H, W) in -1..1, but where the hole (1, H, W) is 1."""

    key: bytes
    name: str
    values: Tensor
    hole: Tensor | None

    @property
    def seen(self) -> Tensor:
        """Grey where the hole is."""
        return self.values if self.hole is None else inpainting.left_of(self.values, self.hole)


def canvas_key(variant: bytes, hole: Hole, mask: bytes | None) -> bytes:
    """By what the hole is in, and which it is."""
    which = (mask or b"") if hole.number is None else f"drawn {hole.number}"
    return key_of("canvas", variant, which)


def canvas_of(hole: Tensor, latents: Tensor) -> Tensor:
    """Of a hole (1, H, W) and latents (C, h, w) of the rest: (1 + C, h, w), in their dtype."""
    return inpainting.join(hole[None], latents[None])[0]
