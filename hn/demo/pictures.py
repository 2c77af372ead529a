"""The demo's pictures: one coloured shape on a coloured ground, with a caption that says which.

`sample_scene` draws what is in a picture, `caption` says it in words, and `render` paints it,
either plainly or in the demo's style, *neon*: a dark ground and the object as a glowing tube. The
plain pictures (and their `outlined` and `at night` variants) trained the demo's base model; the
neon ones are what `--config demo` teaches a hypernetwork. Everything is a pure function of the
`random.Random` passed in. Pillow only: no torch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Style = Literal["plain", "neon"]
Point = tuple[float, float]

SIDE = 64  # pixels
OVERSAMPLING = 4  # drawn larger and reduced, so that edges are smooth

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 40),
    "yellow": (245, 215, 45),
    "green": (45, 165, 70),
    "blue": (45, 85, 220),
    "purple": (140, 60, 180),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SIZES = {"small": 11.0, "large": 18.0}  # radius in pixels of a 64-pixel picture
PLACES: dict[str, Point] = {
    "in the middle": (0.0, 0.0),
    "on the left": (-12.0, 0.0),
    "on the right": (12.0, 0.0),
    "at the top": (0.0, -12.0),
    "at the bottom": (0.0, 12.0),
}
NIGHT = 0.3  # what is left of the ground's brightness at night
NEON_GROUND = 0.16  # and under a neon sign


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one picture shows. `dx`, `dy` (pixels) and `scale` vary what the words leave open."""

    shape: str
    colour: str
    background: str
    size: str = "large"
    place: str = "in the middle"
    outlined: bool = False
    night: bool = False
    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0


def sample_scene(
    rng: Random, shapes: Sequence[str] = SHAPES, variants: float = 0.0, jitter: float = 2.0
) -> Scene:
    """Draw a scene; `variants` is the chance, each, of an outline and of night."""
    colour, background = rng.sample(list(PALETTE), 2)
    return Scene(
        shape=rng.choice(list(shapes)),
        colour=colour,
        background=background,
        size=rng.choice(list(SIZES)),
        place=rng.choice(list(PLACES)),
        outlined=rng.random() < variants,
        night=rng.random() < variants,
        dx=rng.uniform(-jitter, jitter),
        dy=rng.uniform(-jitter, jitter),
        scale=rng.uniform(0.92, 1.08),
    )


def is_held_out(scene: Scene) -> bool:
    """Whether the base model never saw this shape in this colour on this ground: one in nine."""
    colours = list(PALETTE)
    number = SHAPES.index(scene.shape) + 2 * colours.index(scene.colour)
    return (number + 3 * colours.index(scene.background)) % 9 == 0


def sample_known_scene(rng: Random, variants: float) -> Scene:
    """Draw a scene that is not held out from the base model."""
    while True:
        scene = sample_scene(rng, variants=variants)
        if not is_held_out(scene):
            return scene


def caption(scene: Scene, rng: Random | None = None) -> str:
    """Say what the scene shows; with an `rng`, size and place are sometimes left out."""
    size = f"{scene.size} " if rng is None or rng.random() < 0.7 else ""
    place = f" {scene.place}" if rng is None or rng.random() < 0.7 else ""
    words = f"a {size}{scene.colour} {scene.shape}{place} on a {scene.background} background"
    return words + ", outlined" * scene.outlined + ", at night" * scene.night


def render(scene: Scene, style: Style = "plain", side: int = SIDE) -> Image.Image:
    """Paint the scene as an RGB picture of `side` x `side` pixels."""
    mask = object_mask(scene, side)
    ground, colour = PALETTE[scene.background], PALETTE[scene.colour]
    if style == "neon":
        return _neon(mask, ground, colour)
    picture = Image.new("RGB", mask.size, _dim(ground, NIGHT if scene.night else 1.0))
    picture.paste(colour, mask=_contour(mask, 0.04) if scene.outlined else mask)
    return picture.resize((side, side), Image.Resampling.BOX)


def object_mask(scene: Scene, side: int = SIDE) -> Image.Image:
    """The object's area, white on black, `OVERSAMPLING` times as wide as the picture."""
    width = side * OVERSAMPLING
    unit = width / SIDE
    radius = SIZES[scene.size] * scene.scale * unit
    dx, dy = PLACES[scene.place]
    centre = (width / 2 + (dx + scene.dx) * unit, width / 2 + (dy + scene.dy) * unit)
    mask = Image.new("L", (width, width), 0)
    _OUTLINES[scene.shape](ImageDraw.Draw(mask), centre, radius)
    return mask


def write_folder(
    folder: Path, count: int, *, seed: int, shapes: Sequence[str] = SHAPES, style: Style = "plain"
) -> None:
    """Write `count` pictures `0000.png ...` with their captions `0000.txt ...` into `folder`."""
    rng = Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = sample_scene(rng, shapes)
        render(scene, style).save(folder / f"{index:04d}.png")
        (folder / f"{index:04d}.txt").write_text(caption(scene), encoding="utf-8")


def _neon(
    mask: Image.Image, ground: tuple[int, int, int], colour: tuple[int, int, int]
) -> Image.Image:
    """The object as a glowing tube: halo of its colour, tube of its colour, pale core."""
    tube, core = _contour(mask, 0.045), _contour(mask, 0.016)
    halo = tube.filter(ImageFilter.GaussianBlur(mask.width * 0.035))
    glow = Image.new("RGB", mask.size)
    glow.paste(_dim(colour, 0.9), mask=halo)
    picture = ImageChops.screen(Image.new("RGB", mask.size, _dim(ground, NEON_GROUND)), glow)
    picture.paste(colour, mask=tube)
    picture.paste(_blend(colour, (255, 255, 255), 0.75), mask=core)
    side = mask.width // OVERSAMPLING
    return picture.resize((side, side), Image.Resampling.BOX)


def _contour(mask: Image.Image, width: float) -> Image.Image:
    """The band inside the edge of `mask`, `width` of the picture's side wide."""
    # Blurred with a sigma of d, a straight edge passes 84 % at the depth d: an erosion without
    # corners of its own.
    eroded = mask.filter(ImageFilter.GaussianBlur(width * mask.width))
    return ImageChops.subtract(mask, eroded.point([0] * 215 + [255] * 41))


def _dim(colour: tuple[int, int, int], brightness: float) -> tuple[int, int, int]:
    return _blend((0, 0, 0), colour, brightness)


def _blend(
    start: tuple[int, int, int], end: tuple[int, int, int], share: float
) -> tuple[int, int, int]:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


def _polygon(points: Sequence[Point]) -> Callable[[ImageDraw.ImageDraw, Point, float], None]:
    """A painter of the polygon with these corners, given in units of the radius."""

    def paint(draw: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
        draw.polygon(
            [(centre[0] + x * radius, centre[1] + y * radius) for x, y in points], fill=255
        )

    return paint


def _circle(draw: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _star_corners() -> list[Point]:
    turns = [(-math.pi / 2 + math.pi * k / 5, 1.15 if k % 2 == 0 else 0.48) for k in range(10)]
    return [(r * math.cos(angle), r * math.sin(angle) + 0.08) for angle, r in turns]


def _heart_corners() -> list[Point]:
    """The classic parametric heart, 40 corners, scaled to the unit radius."""
    corners: list[Point] = []
    for k in range(40):
        t = 2 * math.pi * k / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((x / 16, -(y + 2.5) / 16))
    return corners


_ARM = 0.36  # half the width of the cross's arms
_OUTLINES: dict[str, Callable[[ImageDraw.ImageDraw, Point, float], None]] = {
    "circle": _circle,
    "square": _polygon([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]),
    "triangle": _polygon([(0.0, -1.0), (1.05, 0.85), (-1.05, 0.85)]),
    "star": _polygon(_star_corners()),
    "heart": _polygon(_heart_corners()),
    "cross": _polygon(
        [
            *[(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)],
            *[(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
        ]
    ),
}
