"""The settings of `tools/prepare_images.py`, with their help and limits; standard library only.

Names and defaults are those of the web UI's tab "Preprocess images" where it has them;
only captions are copied by default, which it leaves out.
"""

import argparse
import math
from dataclasses import dataclass, field, fields
from typing import Any

from hn.errors import OptionError

SIDE_STEP = 64  # pixels between the sides that an auto-sized crop may have
CAPTION_ACTIONS = ("ignore", "copy", "prepend", "append")
OBJECTIVES = ("area", "error")


def _setting(default: Any, about: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"about": about, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to make of every picture."""

    width: int = _setting(512, "width of the pictures made, in pixels")
    height: int = _setting(512, "their height")
    flip: bool = _setting(False, "also make the mirrored twin of every picture")
    keep_original_size: bool = _setting(False, "mode: the whole picture in its own size")
    split: bool = _setting(False, "mode: cut what is far too long into overlapping pieces")
    split_threshold: float = _setting(0.5, "split if a crop would keep at most this share")
    overlap: float = _setting(0.2, "share of a piece that the next one repeats, at least")
    focal_crop: bool = _setting(False, "mode: crop around what draws the eye (needs OpenCV)")
    face_weight: float = _setting(0.9, "how much faces count for the focal point")
    entropy_weight: float = _setting(0.15, "how much the most mixed part counts")
    edges_weight: float = _setting(0.5, "how much corners and details count")
    face_model: str | None = _setting(
        None, "find faces with this YuNet .onnx file instead of OpenCV's Haar cascades"
    )
    auto_crop: bool = _setting(False, "mode: crop to the best size of a grid, else skip")
    auto_crop_min_dim: int = _setting(384, "smallest side of an auto-sized crop")
    auto_crop_max_dim: int = _setting(768, "largest side")
    auto_crop_min_area: int = _setting(4096, "smallest area, in pixels")
    auto_crop_max_area: int = _setting(409600, "largest area")
    auto_crop_objective: str = _setting(
        "area", "prefer the largest area or the smallest error of the proportions", OBJECTIVES
    )
    auto_crop_threshold: float = _setting(0.1, "largest error of the proportions, 0 to 1")
    caption_action: str = _setting(
        "copy",
        "what to do with existing captions: leave them out (ignore), take them and generate only "
        "what is missing (copy), put them before (prepend) or after (append) the generated ones",
        CAPTION_ACTIONS,
    )
    blip_model: str | None = _setting(None, "generate captions with this BLIP, folder or hub id")
    blip_beams: int = _setting(1, "beams of its search")
    blip_min_length: int = _setting(24, "fewest tokens of a caption")
    blip_max_length: int = _setting(48, "most tokens of a caption")
    debug_pictures: bool = _setting(
        False, "also draw every source with its crops and points into OUTPUT/debug"
    )


# A setting that is changed although what it belongs to is off would be ignored without a word.
_BELONG_TO = {
    "split": ("split_threshold", "overlap"),
    "focal_crop": ("face_weight", "entropy_weight", "edges_weight", "face_model"),
    "auto_crop": tuple(f.name for f in fields(Settings) if f.name.startswith("auto_crop_")),
    "blip_model": tuple(f.name for f in fields(Settings) if f.name.startswith("blip_"))[1:],
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each setting."""
    for f in fields(Settings):
        about = f.metadata["about"]
        if f.default is False:
            parser.add_argument(f"--{f.name}", action="store_true", help=about)
            continue
        kind = str if f.default is None else type(f.default)
        parser.add_argument(
            f"--{f.name}",
            type=kind,
            default=f.default,
            choices=f.metadata["choices"],
            help=about if f.default is None else f"{about} (default %(default)s)",
        )


def from_flags(args: argparse.Namespace) -> Settings:
    """The settings among the parsed flags. Raises `OptionError` with one line for each fault."""
    settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings)})
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Refuse what cannot work. Raises `OptionError` with one line for each fault."""
    faults = [*_range_faults(settings), *_combination_faults(settings)]
    if faults:
        raise OptionError("\n".join(faults))


def auto_crop_sizes(settings: Settings) -> list[tuple[int, int]]:
    """Every (width, height) of the grid within the limits of sides and area."""
    sides = range(settings.auto_crop_min_dim, settings.auto_crop_max_dim + 1, SIDE_STEP)
    least, most = settings.auto_crop_min_area, settings.auto_crop_max_area
    return [(w, h) for w in sides for h in sides if least <= w * h <= most]


def _range_faults(settings: Settings) -> list[str]:
    sides = ("width", "height", "auto_crop_min_dim", "auto_crop_max_dim")
    shares = {"split_threshold": 1.0, "overlap": 0.9, "auto_crop_threshold": 1.0}
    weights = ("face_weight", "entropy_weight", "edges_weight")
    faults = [
        f"{name} must be a multiple of 8, at least 16; found {value}"
        for name, value in _named(settings, sides)
        if value < 16 or value % 8
    ]
    faults += [
        f"{name} must be from 0 to {shares[name]:g}; found {value}"
        for name, value in _named(settings, tuple(shares))
        if not 0 <= value <= shares[name]
    ]
    faults += [
        f"{name} must not be negative; found {value}"
        for name, value in _named(settings, weights)
        if not (value >= 0 and math.isfinite(value))
    ]
    if settings.blip_beams < 1:
        faults.append(f"blip_beams must be at least 1; found {settings.blip_beams}")
    if not 1 <= settings.blip_min_length <= settings.blip_max_length:
        faults.append(
            "blip_min_length must be at least 1 and at most blip_max_length; found "
            f"{settings.blip_min_length} and {settings.blip_max_length}"
        )
    return faults


def _combination_faults(settings: Settings) -> list[str]:
    defaults = Settings()
    faults = [
        f"{name} has no effect without --{owner}: give both or neither"
        for owner, names in _BELONG_TO.items()
        if not getattr(settings, owner)
        for name in names
        if getattr(settings, name) != getattr(defaults, name)
    ]
    if settings.focal_crop and not any(
        (settings.face_weight, settings.entropy_weight, settings.edges_weight)
    ):
        faults.append(
            "focal_crop needs one of face_weight, entropy_weight and edges_weight above 0; found "
            "0 for all"
        )
    if settings.auto_crop and not auto_crop_sizes(settings):
        faults.append(
            "auto_crop has no size to choose from: no sides from auto_crop_min_dim to "
            f"auto_crop_max_dim in steps of {SIDE_STEP} have an area from auto_crop_min_area to "
            "auto_crop_max_area; widen one of the ranges"
        )
    return faults


def _named(settings: Settings, names: tuple[str, ...]) -> list[tuple[str, Any]]:
    return [(name, getattr(settings, name)) for name in names]
