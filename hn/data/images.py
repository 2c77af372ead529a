"""Pictures: from a folder or an HF dataset to one `datasets.Dataset`, checked before training.

A folder's captions are read by us: datasets' own `imagefolder` loader drops `.txt` captions without
a word.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets import Image as ImageFeature
from tqdm import tqdm

from hn.config import DataConfig
from hn.data.decoding import Example, decode, read_content
from hn.data.folder_captions import Captioned, CaptionReader
from hn.data.hub_datasets import read_hub_dataset
from hn.data.metadata import Metadata, read_metadata
from hn.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHOWN_FAULTS = 20
NAMED = 5


@dataclass(frozen=True)
class Folder:
    """The pictures of a folder, by name, with their captions, and what is wrong with these."""

    pictures: list[Path]
    captions: dict[str, Captioned]  # by name of the picture, where they can be used
    unusable: dict[str, str]  # by name of the picture, what is wrong with its caption
    others: list[str]  # what is wrong with metadata, and where two pictures have one caption file
    unused: list[str]  # names of what is neither; sub-folders end with a slash
    metadata: Metadata

    @property
    def texts(self) -> dict[str, str]:
        """All captions of each picture as one text."""
        return {name: "\n".join(it.captions) for name, it in self.captions.items()}

    @property
    def faults(self) -> list[str]:
        """All that is wrong."""
        return [*self.unusable.values(), *self.others]


def load_examples(config: DataConfig) -> Dataset:
    """The training pictures as a dataset of `image` (undecoded), `caption`, `name`,
    `other_captions` and `caption_source`.

    Raises `DataError` listing what is wrong with the folder, its captions, or the HF dataset.
    """
    if config.train_data_dir is not None:
        return read_configured_folder(config, "train_data_dir")
    pictures, written = read_hub_dataset(config)
    return _with_captions(pictures, written, [f"row {row}" for row in range(len(written))])


def read_configured_folder(config: DataConfig, setting: str) -> Dataset:
    """The folder that this setting names, its captions found as the other settings say."""
    return read_folder(
        Path(getattr(config, setting)),
        config.missing_caption,
        setting=setting,
        word_regex=config.filename_word_regex,
        join_string=config.filename_join_string,
        caption_column=config.caption_column,
        caption_lines=config.caption_lines,
    )


def read_folder(
    folder: Path,
    missing_caption: str,
    *,
    setting: str,
    **choices: Any,
) -> Dataset:
    """The pictures of a folder (not of its sub-folders), sorted by name, with their captions.

    `choices` as for `scan_folder`. Raises `DataError` naming the `setting` and all captions that
    cannot be used.
    """
    found = scan_folder(folder, missing_caption, setting=setting, **choices)
    if found.unused:
        print(f"not used, of {folder}: {named(found.unused)}")
    if found.metadata.unused:
        columns = named(list(found.metadata.unused))
        print(f"columns not used, of {found.metadata.file}: {columns}")
    if found.faults:
        raise DataError(
            listed(f"{setting} '{folder}' has captions that cannot be used", found.faults)
        )
    sources = [{"path": str(path), "bytes": None} for path in found.pictures]
    return _with_captions(
        Dataset.from_dict({"image": sources}, _PICTURES),
        [found.captions[path.name] for path in found.pictures],
        [path.name for path in found.pictures],
    )


def scan_folder(
    folder: Path,
    missing_caption: str,
    *,
    setting: str,
    word_regex: str = "",
    join_string: str = " ",
    caption_column: str = "text",
    caption_lines: bool = False,
) -> Folder:
    """What the folder holds, with everything that is wrong with its captions.

    See `CaptionReader` for where these are found. Raises `DataError` naming the `setting` if there
    is no such folder or no picture in it.
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
    metadata = read_metadata(folder, caption_column)
    reader = CaptionReader(
        metadata=metadata,
        missing=missing_caption,
        word_regex=word_regex,
        join_string=join_string,
        lines=caption_lines,
    )
    captions, unusable, others = reader.read_all(pictures)
    unused = _unused(files, pictures, metadata.file)
    return Folder(pictures, captions, unusable, others, unused, metadata)


def examples(dataset: Dataset, description: str) -> Iterator[Example]:
    """Go through the dataset with a progress bar."""
    yield from tqdm(examples_of(dataset), description, len(dataset), unit="picture", leave=False)


def examples_of(dataset: Dataset) -> Iterator[Example]:
    """Go through the dataset."""
    rows: Any = dataset
    for row in rows:
        yield Example(row["name"], row["image"], row["caption"], tuple(row["other_captions"]))


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
            words = "\0".join(example.captions)  # no caption holds this character
            for part in (example.name.encode(), words.encode(), read_content(example)):
                digest.update(hashlib.sha256(part).digest())
            if picture.width < size[0] or picture.height < size[1]:
                enlarged.append(example.name)
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError(
            listed(
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


def listed(headline: str, faults: list[str]) -> str:
    """A headline with the first faults below it, one in a line, and how many more there are."""
    more = [f"... and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
    return "\n  ".join([headline + ":", *faults[:SHOWN_FAULTS], *more])


_PICTURES = Features({"image": ImageFeature(decode=False)})
_WORDS = Features(
    {
        "caption": Value("string"),
        "name": Value("string"),
        "other_captions": List(Value("string")),
        "caption_source": Value("string"),
    }
)


def _with_captions(pictures: Dataset, written: list[Captioned], names: list[str]) -> Dataset:
    """The dataset of `image` with its other columns, as `Example` has them."""
    columns = {
        "caption": [it.captions[0] for it in written],
        "name": names,
        "other_captions": [it.captions[1:] for it in written],
        "caption_source": [it.source for it in written],
    }
    return concatenate_datasets([pictures, Dataset.from_dict(columns, _WORDS)], axis=1)


def _unused(files: list[Path], pictures: list[Path], metadata_file: str | None) -> list[str]:
    used = {*pictures, *(path.with_suffix(".txt") for path in pictures)}
    return [
        path.name + "/" * path.is_dir()
        for path in files
        if path not in used and path.name != metadata_file
    ]
