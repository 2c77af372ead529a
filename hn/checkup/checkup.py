"""The pass over a folder: every picture is decoded once, as in the trainer's check, and judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from hn.checkup import findings, likeness
from hn.checkup.captions import CaptionStatistics, Ruler, caption_statistics
from hn.checkup.measures import Measures, measure
from hn.checkup.report import Checked, Report
from hn.checkup.sheet import thumbnail
from hn.config import DataConfig
from hn.data.pictures.buckets import USUAL_STEP
from hn.data.pictures.decoding import Example, decode
from hn.data.pictures.framing import Framing
from hn.data.pictures.images import Folder, scan_folder
from hn.data.words.metadata import Metadata
from hn.errors import DataError

Thumbnails = dict[str, Image.Image | None]  # by name; None: cannot be read


@dataclass(frozen=True)
class Look:
    """What is kept of a picture that could be read."""

    measures: Measures
    fingerprint: likeness.Fingerprint
    thumbnail: Image.Image | None


def check_up(
    data: DataConfig,
    ruler: Ruler,
    *,
    top: int,
    shown: int = 0,
    step: int = USUAL_STEP,
    batch_size: int = 1,
) -> tuple[Report, Thumbnails]:
    """Go through the folder `data.train_data_dir`; keep thumbnails of `shown` pictures.

    What is wrong with the folder is in the report, not raised; of its tags, the `top` most frequent
    are. `step` is the model's, for buckets. Raises `OptionError` if there is no bucket.
    """
    framing = Framing.of(data, step)
    found, refusal = _scan(data)
    captions = caption_statistics(found, ruler, top)
    names = [path.name for path in found.pictures]
    thumbnails: Thumbnails = dict.fromkeys(evenly(names, shown))
    looks: dict[str, Look] = {}
    faults: dict[str, str] = {}
    for path in tqdm(found.pictures, desc="checking pictures", unit="picture", leave=False):
        try:
            looks[path.name] = _look(path, framing, path.name in thumbnails)
            thumbnails |= {path.name: looks[path.name].thumbnail} if path.name in thumbnails else {}
        except DataError as error:
            faults[path.name] = str(error)
    same, alike = _duplicates(looks)
    flagged = {
        findings.UNUSABLE: {*faults, *found.unusable},
        findings.SAME: {name for group in same for name in group},
        findings.ALIKE: {name for group in alike for name in group},
        **_caption_flags(captions, data),
    }
    report = Report(
        folder=str(data.train_data_dir),
        settings=_settings(data, framing, batch_size),
        faults=[*refusal, *found.faults, *faults.values()],
        pictures=[
            _checked(name, found, looks.get(name), faults.get(name), flagged) for name in names
        ],
        same=same,
        alike=alike,
        framing=framing,
        captions=captions,
        unused=found.unused,
    )
    return report, thumbnails


def _settings(data: DataConfig, framing: Framing, batch_size: int) -> dict[str, Any]:
    """What the answer depends on."""
    return {
        "resolution": list(data.size),
        "resize_mode": data.resize_mode,
        "bucket_step": framing.step if data.resize_mode == "bucket" else None,
        "max_aspect_ratio": data.max_aspect_ratio,
        "no_upscale": data.no_upscale,
        "native_size": data.native_size,
        "train_batch_size": batch_size,
        "missing_caption": data.missing_caption,
    }


def evenly(names: list[str], count: int) -> list[str]:
    """At most `count` of the names, from the first to the last in even steps."""
    if len(names) <= count:
        return names
    return [names[place] for place in np.linspace(0, len(names) - 1, count).round().astype(int)]


def _scan(data: DataConfig) -> tuple[Folder, list[str]]:
    """What the folder holds, and why the trainer would not even look into it."""
    assert data.train_data_dir is not None
    try:
        found = scan_folder(
            Path(data.train_data_dir),
            data.missing_caption,
            setting="train_data_dir",
            word_regex=data.filename_word_regex,
            join_string=data.filename_join_string,
        )
    except DataError as error:
        return Folder([], {}, {}, [], [], Metadata()), [str(error)]
    return found, []


def _look(path: Path, framing: Framing, shown: bool) -> Look:
    """Decode a picture, and keep what is to be known of it. Raises `DataError`."""
    decoded = decode(Example(path.name, {"path": str(path)}, ""))
    rgb = decoded.rgb
    seen = framing.frame(rgb.size)
    return Look(
        measure(path.name, decoded, rgb, seen),
        likeness.fingerprint(rgb),
        thumbnail(rgb, seen) if shown else None,
    )


def _duplicates(looks: dict[str, Look]) -> tuple[list[list[str]], list[list[str]]]:
    """Groups of equal and of similar pictures; a picture of one colour has no likeness."""
    same = likeness.same({name: look.fingerprint for name, look in looks.items()})
    repeated = {name for group in same for name in group[1:]}
    comparable = {
        name: look.fingerprint
        for name, look in looks.items()
        if name not in repeated and findings.UNIFORM not in findings.measured_flags(look.measures)
    }
    return same, likeness.alike(comparable)


def _caption_flags(captions: CaptionStatistics, data: DataConfig) -> dict[str, set[str]]:
    """Which pictures have which; those named by their files do have a caption."""
    bare = set() if data.missing_caption == "filename" else set(captions.missing)
    return {
        findings.NO_CAPTION: bare,
        findings.EMPTY_CAPTION: set(captions.empty),
        findings.LONG_CAPTION: set(captions.long),
    }


def _checked(
    name: str,
    found: Folder,
    look: Look | None,
    fault: str | None,
    flagged: Mapping[str, set[str]],
) -> Checked:
    flags = [flag for flag, names in flagged.items() if name in names]
    flags += [] if look is None else findings.measured_flags(look.measures)
    return Checked(
        name,
        found.texts.get(name),
        fault or found.unusable.get(name),
        None if look is None else look.measures,
        findings.in_order(flags),
    )
