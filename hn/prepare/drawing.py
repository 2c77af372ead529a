"""The source with its crops and points drawn in, for people who would rather look than read."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from hn.prepare.crops import Crop, Point
from hn.prepare.focal import Focus

LARGEST_SIDE = 768  # pixels of the drawing
_BOX = {"fill": "lime", "focal": "lime", "split": "orange", "auto": "cyan", "original": "white"}
_POINT = {"faces": "red", "edges": "deepskyblue", "entropy": "yellow"}


def draw(picture: Image.Image, crops: Sequence[Crop], focus: Focus | None) -> Image.Image:
    """A reduced copy: every crop as a labelled box, every point found as a dot, its detector's
    centroid as a ring, the focal point as a cross.
    """
    scale = min(1.0, LARGEST_SIDE / max(picture.size))
    copy = picture.resize([max(1, round(side * scale)) for side in picture.size])
    pen = ImageDraw.Draw(copy)
    for number, crop in enumerate(crops):
        left, top, right, bottom = (side * scale for side in crop.box)
        colour = _BOX[crop.mode]
        pen.rectangle(
            (left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2
        )
        label = f"{crop.mode} {crop.size[0]}x{crop.size[1]}"
        pen.text((left + 5, top + 4 + 12 * number), label, colour, stroke_width=1, stroke_fill=0)
    if focus is not None:
        _draw_focus(pen, focus, scale)
    return copy


def _draw_focus(pen: ImageDraw.ImageDraw, focus: Focus, scale: float) -> None:
    for evidence in focus.evidence:
        colour = _POINT[evidence.detector]
        for point in evidence.points:
            pen.ellipse(_disc(point, scale, 2), fill=colour)
        ring = _disc(evidence.centroid, scale, 10)
        pen.ellipse(ring, outline=colour, width=2)
        label = f"{evidence.detector} {evidence.weight:g}"
        pen.text((ring[2] + 3, ring[1] + 4), label, colour, stroke_width=1, stroke_fill=0)
    x, y = (side * scale for side in focus.point)
    pen.line((x - 14, y, x + 14, y), fill="lime", width=3)
    pen.line((x, y - 14, x, y + 14), fill="lime", width=3)


def _disc(point: Point, scale: float, radius: float) -> tuple[float, float, float, float]:
    x, y = point[0] * scale, point[1] * scale
    return x - radius, y - radius, x + radius, y + radius
