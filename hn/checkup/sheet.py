"""A contact sheet: every picture with the part that the model will see, and what was found."""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hn.checkup.findings import FINDINGS, UNUSABLE
from hn.checkup.report import Checked, Report
from hn.data.pictures.framing import Frame
from hn.storage import write_bytes

SIDE = 200  # pixels of a thumbnail's longer side
GAP = 16
COLUMNS = 6
TITLE_HEIGHT = 64
TEXT_HEIGHT = 88  # below a thumbnail: name, caption, flags
FRAME, DIMMED = (236, 0, 140), 0.65  # what the model sees; how pale the rest is
PAPER, INK, PALE_INK, BED = (255, 255, 255), (25, 28, 32), (105, 112, 120), (240, 242, 244)
RED, ORANGE, BLUE = (200, 30, 40), (205, 105, 0), (70, 110, 160)
_HARMLESS = {finding.flag for finding in FINDINGS if finding.harmless}
_LINE = 15  # pixels
Text = ImageFont.FreeTypeFont | ImageFont.ImageFont


def thumbnail(rgb: Image.Image, frame: Frame) -> Image.Image:
    """A small copy with the frame drawn in, and what lies outside of it pale."""
    scale = SIDE / max(rgb.size)
    size = max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale))
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    small = rgb.resize(size, resample, reducing_gap=3 if scale < 1 else None)
    left, top, right, bottom = (round(side) for side in frame.box_in(small.size))
    result = Image.blend(small, Image.new("RGB", small.size, PAPER), DIMMED)
    result.paste(small.crop((left, top, right, bottom)), (left, top))
    edge = left, top, max(left, right - 1), max(top, bottom - 1)
    ImageDraw.Draw(result).rectangle(edge, outline=FRAME, width=2)
    return result


def write(path: Path, report: Report, thumbnails: dict[str, Image.Image | None]) -> None:
    """Write the sheet as PNG. Raises `StorageError`."""
    buffer = io.BytesIO()
    draw(report, thumbnails).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def draw(report: Report, thumbnails: dict[str, Image.Image | None]) -> Image.Image:
    """The sheet of those pictures that have an entry in `thumbnails`, in rows."""
    shown = [picture for picture in report.pictures if picture.name in thumbnails]
    columns = max(3, min(COLUMNS, len(shown)))
    rows = -(-len(shown) // columns)
    width = GAP + columns * (SIDE + GAP)
    height = TITLE_HEIGHT + rows * (SIDE + TEXT_HEIGHT + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    _draw_title(pen, report, len(shown), width)
    for number, picture in enumerate(shown):
        row, column = divmod(number, columns)
        corner = GAP + column * (SIDE + GAP), TITLE_HEIGHT + row * (SIDE + TEXT_HEIGHT + GAP)
        _draw_picture(sheet, pen, picture, thumbnails[picture.name], corner)
    return sheet


def _draw_title(pen: ImageDraw.ImageDraw, report: Report, shown: int, width: int) -> None:
    """How many pictures of which folder these are, and what the colours mean."""
    count, (across, down) = len(report.pictures), report.settings["resolution"]
    number = (
        f"{count} pictures" if shown == count else f"{shown} of {count} pictures, evenly chosen"
    )
    title = f"{number} for {across} x {down} ({report.settings['resize_mode']}): {report.folder}"
    pen.text((GAP, 10), fitted(title, _font(16), width - 2 * GAP, 1)[0], INK, _font(16))
    pen.rectangle((GAP, 39, GAP + 13, 52), outline=FRAME, width=2)
    pen.text((GAP + 20, 38), "what the model will see", PALE_INK, _font(12))
    place = GAP + 170
    for label, colour in (("refused", RED), ("look at it", ORANGE), ("good to know", BLUE)):
        place += _draw_chip(pen, (place, 37), label, colour) + 6


def _draw_picture(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    picture: Checked,
    small: Image.Image | None,
    corner: tuple[int, int],
) -> None:
    """One cell: the thumbnail in the middle of its bed, or why there is none; the text below."""
    left, top = corner
    bed = left, top, left + SIDE - 1, top + SIDE - 1
    pen.rectangle(bed, fill=BED, outline=RED if small is None else None)
    if small is not None:
        place = left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2
        sheet.paste(small, place)
    else:
        for line, text in enumerate(fitted(picture.fault or "", _font(12), SIDE - 20, 8)):
            pen.text((left + 10, top + 10 + line * _LINE), text, RED, _font(12))
    top += SIDE + 5
    pen.text((left, top), fitted(picture.name, _font(13), SIDE, 1)[0], INK, _font(13))
    for line, text in enumerate(fitted(picture.caption or "", _font(11), SIDE, 2)):
        pen.text((left, top + 18 + line * (_LINE - 1)), text, PALE_INK, _font(11))
    _draw_flags(pen, picture.flags, (left, top + 48))


def _draw_flags(pen: ImageDraw.ImageDraw, flags: Sequence[str], corner: tuple[int, int]) -> None:
    """Chips in at most two rows; what does not fit is a number."""
    left, top = corner
    place, row = left, 0
    for number, flag in enumerate(flags):
        width = _chip_width(flag)
        rest = len(flags) - number
        room = SIDE if row == 0 or rest == 1 else SIDE - _chip_width(f"+{rest - 1}") - 3
        if place + width > left + room:
            if row == 1:
                _draw_chip(pen, (place, top + 18), f"+{rest}", PALE_INK)
                return
            place, row = left, 1
        colour = RED if flag == UNUSABLE else BLUE if flag in _HARMLESS else ORANGE
        place += _draw_chip(pen, (place, top + 18 * row), flag, colour) + 3


def _draw_chip(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], label: str, colour: tuple[int, int, int]
) -> int:
    """White words on a coloured ground; returns its width."""
    left, top = corner
    width = _chip_width(label)
    pen.rounded_rectangle((left, top, left + width, top + 16), radius=4, fill=colour)
    pen.text((left + 5, top + 2), label, PAPER, _font(11))
    return width


def _chip_width(label: str) -> int:
    return round(_font(11).getlength(label)) + 10


def fitted(text: str, font: Text, width: int, lines: int) -> list[str]:
    """The text in at most so many lines of `width` pixels; what is left out is an ellipsis.

    Lines break anywhere: captions of some languages have no blanks. At least one line comes back.
    """
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    result = []
    while text and len(result) < lines:
        fits = _fitting(text, font, width)
        if fits < len(text) and len(result) == lines - 1:
            return [*result, text[: _fitting(text, font, width - font.getlength("..."))] + "..."]
        blank = text.rfind(" ", 0, fits + 1) if fits < len(text) else fits
        cut = blank if blank > fits // 2 else fits
        result.append(text[:cut])
        text = text[cut:].lstrip()
    return result or [""]


def _fitting(text: str, font: Text, width: float) -> int:
    """How many characters of it fit into `width` pixels, at least one."""
    count = 1
    while count < len(text) and font.getlength(text[: count + 1]) <= width:
        count += 1
    return count


@cache
def _font(size: int) -> Text:
    return ImageFont.load_default(size)
