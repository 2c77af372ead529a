"""Pictures: from a folder or an HF dataset to one `datasets.Dataset`, and from one file to RGB.

A folder's captions are read by us: datasets' own `imagefolder` loader drops `.txt` captions without
a word.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageOps, UnidentifiedImageError
from pyarrow.lib import ArrowException
from tqdm import tqdm

from hn.config import DataConfig
from hn.data.captions import read_caption
from hn.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 100_000_000  # refused from the header alone; a 10,000 x 10,000 picture passes
SHOWN_FAULTS = 20
NAMED = 5


@dataclass(frozen=True)
class Example:
    """One picture and what is written about it."""

    name: str
    source: dict[str, Any]  # {"path": ..., "bytes": ...}, as datasets keeps an undecoded picture
    caption: str


def load_examples(config: DataConfig) -> Dataset:
    """The training pictures as a dataset of `image` (undecoded), `caption` and `name`.

    Raises `DataError` listing what is wrong with the folder, its captions, or the HF dataset.
    """
    if config.train_data_dir is not None:
        return read_folder(
            Path(config.train_data_dir),
            config.missing_caption,
            setting="train_data_dir",
            word_regex=config.filename_word_regex,
            join_string=config.filename_join_string,
        )
    return _read_hub_dataset(config)


def read_folder(
    folder: Path,
    missing_caption: str,
    *,
    setting: str,
    word_regex: str = "",
    join_string: str = " ",
) -> Dataset:
    """The pictures of a folder (not of its sub-folders), sorted by name, with their captions.

    Raises `DataError` naming the `setting` and all captions that cannot be used.
    """
    if not folder.is_dir():
        raise DataError(
            f"{setting} '{folder}' is not a folder. Give the folder that holds the pictures."
        )
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in ENDINGS]
    if not pictures:
        raise DataError(
            f"{setting} '{folder}' holds no picture: {len(files)} entries, none ends with "
            f"{', '.join(ENDINGS)}"
        )
    _report_unused(files, pictures)
    faults: list[str] = []
    captions: list[str] = []
    for path in pictures:
        try:
            captions.append(
                read_caption(path, missing_caption, word_regex=word_regex, join_string=join_string)
            )
        except DataError as error:
            faults.append(str(error))
    faults += _shared_captions(pictures)
    if faults:
        raise DataError(_listed(f"{setting} '{folder}' has captions that cannot be used", faults))
    rows = {
        "image": [{"path": str(path), "bytes": None} for path in pictures],
        "caption": captions,
        "name": [path.name for path in pictures],
    }
    return Dataset.from_dict(rows, features=_FEATURES)


def examples(dataset: Dataset, description: str) -> Iterator[Example]:
    """Go through the dataset with a progress bar."""
    rows: Any = tqdm(dataset, desc=description, unit="picture", leave=False)
    for row in rows:
        yield Example(row["name"], row["image"], row["caption"])


def check_pictures(dataset: Dataset, size: tuple[int, int]) -> str:
    """Decode every picture once, before any model is loaded; name those smaller than `size`.

    Returns a digest of all names, captions and bytes. Raises `DataError` listing all pictures that
    cannot be used.
    """
    faults, enlarged = [], []
    digest = hashlib.sha256()
    for example in examples(dataset, "checking pictures"):
        try:
            picture = open_picture(example)
            for part in (example.name.encode(), example.caption.encode(), _content(example)):
                digest.update(hashlib.sha256(part).digest())
            if picture.width < size[0] or picture.height < size[1]:
                enlarged.append(example.name)
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError(
            _listed(
                f"{len(faults)} of {len(dataset)} pictures cannot be used; mend or remove them",
                faults,
            )
        )
    if enlarged:
        print(f"enlarged, since smaller than {size[0]} x {size[1]}: {named(enlarged)}")
    return digest.hexdigest()


def open_picture(example: Example) -> Image.Image:
    """Decode a picture to 8-bit RGB, turned as its EXIF data say, transparency laid on white.

    Raises `DataError` naming it.
    """
    pixels = _open(example)
    if pixels.mode == "RGB":
        return pixels
    return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")


def open_with_alpha(example: Example) -> tuple[Image.Image, Image.Image]:
    """Decode a picture to its own RGB and its alpha channel, which is opaque if there is none.

    The colours beneath the transparency are kept, as the web UI keeps them: who weights the loss
    with a mask wants the picture learnt, half transparent places too, and not a mixture with white.
    Raises `DataError` naming it.
    """
    pixels = _open(example)
    return pixels.convert("RGB"), pixels.convert("RGBA").getchannel("A")


def named(names: list[str]) -> str:
    """How many, and the first few by name; a strange name is shown escaped."""
    more = ", ..." if len(names) > NAMED else ""
    return f"{len(names)} ({', '.join(map(repr, names[:NAMED]))}{more})"


_FEATURES = Features(
    {"image": ImageFeature(decode=False), "caption": Value("string"), "name": Value("string")}
)


def _read_hub_dataset(config: DataConfig) -> Dataset:
    assert config.dataset_name is not None
    try:
        dataset = load_dataset(
            config.dataset_name, config.dataset_config_name, split=config.dataset_split
        )
    except Exception as error:  # datasets raises a dozen kinds of its own
        raise DataError(
            f"dataset_name '{config.dataset_name}' cannot be loaded: {error}"
        ) from error
    assert isinstance(dataset, Dataset)
    columns = {"image_column": config.image_column, "caption_column": config.caption_column}
    for setting, column in columns.items():
        if column not in dataset.column_names:
            raise DataError(
                f"{setting} '{column}' is not a column of {config.dataset_name}: it has "
                f"{dataset.column_names}"
            )
    dataset = dataset.select_columns(list(columns.values()))
    features = {
        config.image_column: ImageFeature(decode=False),
        config.caption_column: Value("string"),
    }
    for setting, column in columns.items():
        try:
            dataset = dataset.cast_column(column, features[column])
        except (ArrowException, TypeError, ValueError) as error:
            wanted = "pictures" if setting == "image_column" else "texts"
            raise DataError(
                f"{setting} '{column}' of {config.dataset_name} does not hold {wanted}, but "
                f"{dataset.features[column]}: choose another column"
            ) from error
    dataset = dataset.rename_columns(
        {config.image_column: "image", config.caption_column: "caption"}
    )
    empty = [row for row, caption in enumerate(dataset["caption"]) if not caption]
    if empty and config.missing_caption != "empty":
        raise DataError(
            f"{len(empty)} rows of {config.dataset_name} have no caption, the first is row "
            f"{empty[0]}. Mend them, or set missing_caption to empty."
        )
    captions = [caption or "" for caption in dataset["caption"]]
    names = [f"row {row}" for row in range(len(dataset))]
    return (
        dataset.remove_columns("caption").add_column("caption", captions).add_column("name", names)
    )


def _open(example: Example) -> Image.Image:
    """Decode a picture to 8-bit RGB, or RGBA where it has transparency, turned by its EXIF data."""
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels; what is too many, we decide below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(_content(example)), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DataError(
                        f"{example.name}: {picture.width} x {picture.height} pixels are too many"
                    )
                picture.load()
                return _to_8_bits(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError as error:  # its own message shows an object's address
        raise DataError(
            f"{example.name}: cannot be read as {', '.join(FORMATS)}: cannot identify its content"
        ) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{example.name}: cannot be read as {', '.join(FORMATS)}: {error}"
        ) from error


def _content(example: Example) -> bytes:
    """The bytes. Raises `OSError` for what is no regular file: a pipe would wait for ever."""
    content, path = example.source.get("bytes"), example.source.get("path")
    if content:
        return content
    if path is None or not Path(path).is_file():
        raise OSError("it is not a regular file")
    return Path(path).read_bytes()


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """RGB or RGBA. Raises `ValueError` for what is fully transparent."""
    if picture.mode.startswith("I"):  # 16 bits: `convert` would clip to white
        return Image.fromarray(
            (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
        ).convert("RGB")
    if picture.has_transparency_data:
        pixels = picture.convert("RGBA")
        if not pixels.getchannel("A").getbbox():
            raise ValueError("it is fully transparent")
        return pixels
    return picture.convert("RGB")


def _report_unused(files: list[Path], pictures: list[Path]) -> None:
    used = {*pictures, *(path.with_suffix(".txt") for path in pictures)}
    unused = [path.name + "/" * path.is_dir() for path in files if path not in used]
    if unused:
        print(f"not used, of {files[0].parent}: {named(unused)}")


def _shared_captions(pictures: list[Path]) -> list[str]:
    """Two pictures that differ in their ending only would share one caption file."""
    first: dict[str, Path] = {}
    return [
        f"{path.name} and {first[path.stem].name} share {path.stem}.txt: rename one"
        for path in pictures
        if first.setdefault(path.stem, path) != path
    ]


def _listed(headline: str, faults: list[str]) -> str:
    more = [f"... and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
    return "\n  ".join([headline + ":", *faults[:SHOWN_FAULTS], *more])
