"""What can be looked at: the grids, and the pictures that do not fit."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from hn.errors import shown
from hn.evaluation.report.findings import Findings, missing, section, table
from hn.evaluation.report.markup import Child, Markup, element
from hn.evaluation.report.wording import UNKNOWN, is_number, number, percent

WORST = 20  # pictures in the table
LARGEST_KEPT = 1_000_000  # bytes; larger files are put in as WebP, so that a phone opens the page
QUALITY = 90
FORMATS = ("PNG", "JPEG", "WEBP")


def grids(findings: Findings) -> Markup:
    """Pictures of the base model beside those of the strengths."""
    found = findings.evaluation.get("grids", [])
    if not found:
        nothing = missing("No pictures were drawn for this report.")
        return section("grids", "Pictures", nothing)
    return section("grids", "Pictures", [_grid(one, findings.folder) for one in found])


def worst(findings: Findings) -> Markup:
    """The pictures on which the hypernetwork gains least: often a caption that does not fit."""
    pictures = findings.evaluation.get("pictures", [])
    if not pictures:
        return section("worst", "Pictures that fit least", missing("Pictures were not compared."))
    drawn = any("file" in one for one in pictures)
    columns = ["Picture", *(["Shown"] if drawn else []), "Caption", "Set", "Base", "Loss", "Gain"]
    columns.append("Gain by step")
    full = _largest(pictures[:WORST])
    rows = [_row(one, findings.folder, drawn, full) for one in pictures[:WORST]]
    left_out = len(pictures) - len(rows)
    about = (
        "Least gain first. A caption that does not say what the picture shows, or a picture of "
        "another kind, stands out here."
    )
    return section(
        "worst",
        "Pictures that fit least",
        element("p", about),
        table("Pictures by gain, least first", columns, rows),
        element("p", f"{left_out} more pictures are in report.json.") if left_out else None,
    )


def _grid(grid: Mapping[str, Any], folder: Path) -> Markup:
    title = str(grid.get("title", "Grid"))
    picture = _picture(folder, str(grid.get("file", "")), str(grid.get("alt") or title))
    return element(
        "figure",
        element("figcaption", element("h3", title), element("p", grid.get("alt"))),
        element("div", picture, class_="picture"),
        class_="wide",
    )


def _largest(pictures: Sequence[Mapping[str, Any]]) -> float:
    """The largest gain or loss of a picture at any step; 1 if there is none."""
    steps = [values for one in pictures for values in (one.get("by_step") or {}).values()]
    sizes = [abs(values["gain"]) for values in steps if is_number(values.get("gain"))]
    return max(sizes, default=1.0) or 1.0


def _row(picture: Mapping[str, Any], folder: Path, drawn: bool, full: float) -> tuple[Child, ...]:
    by_step = sorted((picture.get("by_step") or {}).items(), key=lambda item: _step(item[0]))
    latest = by_step[-1][1] if by_step else {}
    caption = picture.get("caption")
    name = str(picture.get("name", UNKNOWN))
    seen = [_picture(folder, picture["file"], name) if "file" in picture else UNKNOWN]
    return (
        name,
        *(seen if drawn else []),
        element("span", caption or "(no caption)", class_="caption"),
        "unseen" if picture.get("split") == "heldout" else "training",
        number(picture.get("base_loss")),
        number(latest.get("loss")),
        percent(latest.get("gain")),
        _course([(step, values.get("gain")) for step, values in by_step], full),
    )


def _step(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _course(gains: list[tuple[str, Any]], full: float) -> Markup | str:
    """A bar for each step, as high as its gain (`full`: the most); below the line where it is worse
    than the base model.
    """
    known = [(step, gain) for step, gain in gains if is_number(gain)]
    if len(known) < 2:
        return UNKNOWN
    width = max(4.0, min(12.0, 96 / len(known)))
    bars = []
    for place, (_, gain) in enumerate(known):
        height = round(abs(gain) / full * 16, 1)
        top = 17 - height if gain >= 0 else 17
        look = "bar-gain" if gain >= 0 else "bar-loss"
        at = round(place * width, 1)
        bars.append(
            element("rect", x=at, y=top, width=round(width - 1, 1), height=height, class_=look)
        )
    words = ", ".join(f"step {step}: {percent(gain)}" for step, gain in known)
    total = round(width * len(known), 1)
    return element(
        "svg",
        element("title", words),
        bars,
        element("path", d=f"M0 17H{total}", class_="grid"),
        viewBox=f"0 0 {total} 34",
        width=total,
        height=34,
        role="img",
        aria_label=words,
        class_="course",
    )


def _picture(folder: Path, name: str, alt: str) -> Markup:
    """A picture of the report's folder as a part of the page; says so if it cannot be."""
    path = folder / name
    if not name or path.resolve().parent != folder.resolve():
        return missing(f"{shown(name)} is no picture beside the report.")
    try:
        source, size = _embedded(path)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no PNG, JPEG or WebP that can be read"
        return missing(f"{shown(name)} cannot be shown: {reason}.")
    return element("img", src=source, alt=alt, width=size[0], height=size[1])


def _embedded(path: Path) -> tuple[str, tuple[int, int]]:
    """A data: URI and the size in pixels. Raises what PIL raises for what is no picture."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        picture.load()
        kind, size = str(picture.format).lower(), picture.size
        if len(data) > LARGEST_KEPT and max(size) < 16_384:  # WebP's largest side
            smaller = io.BytesIO()
            picture.convert("RGB").save(smaller, "WEBP", quality=QUALITY)
            kind, data = "webp", smaller.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", size
