"""Pictures: from a folder or an HF dataset to one `datasets.Dataset`, checked before training.

A folder's captions are read by us: datasets' own `imagefolder` loader drops `.txt` captions without
a word.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from pyarrow.lib import ArrowException
from tqdm import tqdm

from hn.config import DataConfig
from hn.data.captions import read_caption
from hn.data.decoding import Example, decode, read_content
from hn.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHOWN_FAULTS = 20
NAMED = 5


@dataclass(frozen=True)
class Folder:
    """The pictures of a folder, by name, with their captions, and what is wrong with these."""

    pictures: list[Path]
    captions: dict[str, str]  # by name of the picture, where it can be used
    unusable: dict[str, str]  # by name of the picture, what is wrong with its caption
    shared: list[str]  # what is wrong where two pictures have one caption file
    unused: list[str]  # names of what is neither; sub-folders end with a slash

    @property
    def faults(self) -> list[str]:
        """All that is wrong."""
        return [*self.unusable.values(), *self.shared]


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
    found = scan_folder(
        folder, missing_caption, setting=setting, word_regex=word_regex, join_string=join_string
    )
    if found.unused:
        print(f"not used, of {folder}: {named(found.unused)}")
    if found.faults:
        raise DataError(
            _listed(f"{setting} '{folder}' has captions that cannot be used", found.faults)
        )
    rows = {
        "image": [{"path": str(path), "bytes": None} for path in found.pictures],
        "caption": list(found.captions.values()),
        "name": [path.name for path in found.pictures],
    }
    return Dataset.from_dict(rows, features=_FEATURES)


def scan_folder(
    folder: Path,
    missing_caption: str,
    *,
    setting: str,
    word_regex: str = "",
    join_string: str = " ",
) -> Folder:
    """What the folder holds, with everything that is wrong with its captions.

    Raises `DataError` naming the `setting` if there is no such folder or no picture in it.
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
    captions: dict[str, str] = {}
    unusable: dict[str, str] = {}
    for path in pictures:
        try:
            _check_name(path)
            captions[path.name] = read_caption(
                path, missing_caption, word_regex=word_regex, join_string=join_string
            )
        except DataError as error:
            unusable[path.name] = str(error)
    return Folder(pictures, captions, unusable, _shared(pictures), _unused(files, pictures))


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
            picture = decode(example).pixels
            for part in (example.name.encode(), example.caption.encode(), read_content(example)):
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


def _check_name(path: Path) -> None:
    """Arrow, which holds the dataset, knows names in UTF-8 only. Raises `DataError`."""
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path.name!r} is not a name in UTF-8: rename it") from error


def _unused(files: list[Path], pictures: list[Path]) -> list[str]:
    used = {*pictures, *(path.with_suffix(".txt") for path in pictures)}
    return [path.name + "/" * path.is_dir() for path in files if path not in used]


def _shared(pictures: list[Path]) -> list[str]:
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
