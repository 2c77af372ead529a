"""Pictures to prepare, drawn with Pillow."""

from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFilter

EXIF_ORIENTATION = 0x0112
SKY = (150, 180, 220)


def plain(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, SKY)


def with_subject(size: tuple[int, int], middle: tuple[float, float], reach: int) -> Image.Image:
    """A plain ground with a heap of coloured blocks, at most `reach` from its middle."""
    picture, rng = plain(size), Random(0)
    pen = ImageDraw.Draw(picture)
    for _ in range(40):
        side = rng.uniform(4, reach / 3)
        x, y = (at + rng.uniform(-reach, reach - side) for at in middle)
        colour = tuple(rng.randrange(256) for _ in range(3))
        pen.rectangle((x, y, x + side, y + side), fill=colour)
    return picture


def face() -> Image.Image:
    """A face of 200 x 200 pixels, shaded well enough for the frontal Haar cascades."""
    picture = Image.new("RGB", (200, 200), SKY)
    pen = ImageDraw.Draw(picture)
    pen.ellipse((35, 10, 165, 195), fill=(60, 50, 45))  # hair
    pen.ellipse((45, 30, 155, 190), fill=(215, 195, 180))
    for x in (75, 125):
        pen.ellipse((x - 18, 72, x + 18, 98), fill=(145, 125, 115))  # socket
        pen.ellipse((x - 13, 78, x + 13, 95), fill=(235, 230, 228))
        pen.ellipse((x - 7, 79, x + 7, 94), fill=(35, 30, 28))
        pen.line((x - 18, 68, x + 18, 66), fill=(55, 48, 45), width=6)  # brow
    pen.polygon([(95, 90), (105, 90), (112, 130), (88, 130)], fill=(240, 220, 205))  # nose
    pen.ellipse((85, 124, 115, 136), fill=(155, 135, 120))
    pen.ellipse((75, 145, 125, 165), fill=(120, 90, 85))  # mouth
    return picture.filter(ImageFilter.GaussianBlur(2.4))


def with_face(size: tuple[int, int], corner: tuple[int, int]) -> Image.Image:
    picture = plain(size)
    picture.paste(face(), corner)
    return picture


def save_turned(picture: Image.Image, path: Path) -> None:
    """Save it so that it is seen a quarter turned to the right."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    picture.save(path, exif=exif, quality=95)
