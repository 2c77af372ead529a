"""Pictures and folders that the checkup's tests are about."""

from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw

from hn.checkup.captions import Ruler
from hn.checkup.checkup import check_up
from hn.checkup.report import Report
from hn.config import DataConfig


def drawing(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """Many sharp shapes of strong colours."""
    random = Random(seed)
    picture = Image.new("RGB", size, tuple(random.choices(range(256), k=3)))
    pen = ImageDraw.Draw(picture)
    for _ in range(30):
        corners = [(random.uniform(0, size[0]), random.uniform(0, size[1])) for _ in range(3)]
        pen.polygon(corners, fill=tuple(random.choices(range(256), k=3)))
    return picture


def write(folder: Path, **pictures: Any) -> Path:
    """A folder of captioned pictures; `a__png` names one, which is a picture or a file's bytes."""
    folder.mkdir()
    for number, (key, picture) in enumerate(pictures.items()):
        path = folder / key.replace("__", ".")
        if isinstance(picture, bytes):
            path.write_bytes(picture)
        else:
            picture.save(path)
        path.with_suffix(".txt").write_text(f"drawing {number}")
    return folder


def checked(folder: Path, *, top: int = 20, tokenizer: Path | None = None, **settings: Any):
    """The report on a folder, at 64 pixels unless told otherwise."""
    data = DataConfig(train_data_dir=str(folder), **({"resolution": (64,)} | settings))
    return check_up(data, Ruler(tokenizer), top=top)[0]


def flags(report: Report) -> dict[str, list[str]]:
    """By name of the picture."""
    return {picture.name: picture.flags for picture in report.pictures}
