"""Pictures: from a folder or an HF dataset to one `datasets.Dataset`, checked before training.

A folder's captions are read by us: datasets' own `imagefolder` loader drops `.txt` captions without
a word.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value, concatenate_datasets
from datasets import Image as ImageFeature
from tqdm import tqdm

from hn.config import DataConfig
from hn.data.pictures import balance
from hn.data.pictures.columns import dataset_of, with_counts, with_words
from hn.data.pictures.decoding import Example
from hn.data.pictures.folder_table import TrainFolder, read_folder_table
from hn.data.pictures.hub_datasets import read_hub_dataset
from hn.data.pictures.masks import Masks, find_masks, is_mask
from hn.data.tally import Tally
from hn.data.words.folder_captions import Captioned, CaptionReader
from hn.data.words.metadata import Metadata, read_metadata
from hn.errors import DataError, listed

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_ENTRIES = 2**31 - 1  # of an epoch


@dataclass(frozen=True)
class Folder:
    """The pictures of a folder, by name, with what goes with them, and what is wrong with that."""

    pictures: list[Path]
    captions: dict[str, Captioned]  # by name of the picture, where they can be used
    unusable: dict[str, str]  # by name of the picture, what is wrong with its caption
    others: list[str]  # what is wrong with metadata, and where two pictures have one caption file
    unused: list[str]  # names of what is neither; sub-folders end with a slash
    metadata: Metadata
    masks: Masks = field(default_factory=lambda: Masks({}, [], []))

    @property
    def texts(self) -> dict[str, str]:
        """All captions of each picture as one text."""
        return {name: "\n".join(it.captions) for name, it in self.captions.items()}

    @property
    def faults(self) -> list[str]:
        """All that is wrong."""
        return [*self.unusable.values(), *self.others, *self.masks.faults]


def load_examples(config: DataConfig, tally: Tally | None = None) -> Dataset:
    """The training pictures as a dataset of the columns of `hn.data.pictures.columns`.

    What is not used is said and goes into the `tally`. Raises `DataError` listing what is wrong
    with the folders, their captions, or the HF dataset.
    """
    if config.train_data_dir is not None:
        return read_configured_folder(config, "train_data_dir", tally)
    if config.train_folders is not None:
        return _read_folders(read_folder_table(Path(config.train_folders)), config, tally)
    pictures, written = read_hub_dataset(config)
    return with_counts(
        with_words(pictures, ((f"row {row}", it, None) for row, it in enumerate(written)))
    )


def read_configured_folder(config: DataConfig, setting: str, tally: Tally | None = None) -> Dataset:
    """The folder that this setting names, its captions found as the other settings say."""
    return read_folder(
        Path(getattr(config, setting)),
        config.missing_caption,
        setting=setting,
        tally=tally,
        **_choices(config),
    )


def read_folder(folder: Path, missing_caption: str, **choices: Any) -> Dataset:
    """The pictures of a folder (not of its sub-folders), sorted by name, each counted once.

    `choices` as for `scan_folder`. Raises `DataError` naming the `setting` and all captions and
    masks that cannot be used.
    """
    return with_counts(_read_pictures(folder, missing_caption, **choices))


def _choices(config: DataConfig) -> dict[str, Any]:
    """How these settings want a folder to be read."""
    return {
        "word_regex": config.filename_word_regex,
        "join_string": config.filename_join_string,
        "caption_column": config.caption_column,
        "caption_lines": config.caption_lines,
        "mask_files": config.use_mask_files or config.inpainting_masks in ("files", "both"),
        "weighing": config.use_mask_files,
        "painting": config.inpainting_masks,
    }


def _read_folders(folders: list[TrainFolder], config: DataConfig, tally: Tally | None) -> Dataset:
    """The pictures of several folders, in their order, training and regularization balanced."""
    parts, faults = [], []
    for folder in folders:
        try:
            parts.append(_read_part(folder, config, tally))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    dataset = concatenate_datasets(parts)
    counted = dataset.with_format("numpy")
    repeats, regularization = counted["repeats"][:], counted["regularization"][:]
    if regularization.any():
        print(balance.in_words(repeats, regularization))
    entries = balance.balanced(repeats, regularization)
    if entries.sum() > MAX_ENTRIES:
        raise DataError(
            f"train_folders '{config.train_folders}' makes {entries.sum()} entries of an epoch; at "
            f"most {MAX_ENTRIES} are counted: lower repeats"
        )
    counts = dataset_of([{"repeats": entries}], Features({"repeats": Value("int32")}))
    return concatenate_datasets([dataset.remove_columns("repeats"), counts], axis=1)


def _read_part(folder: TrainFolder, config: DataConfig, tally: Tally | None) -> Dataset:
    dataset = _read_pictures(
        folder.path,
        folder.missing_caption or config.missing_caption,
        setting="train_folders: path",
        label=folder.label,
        tally=tally,
        **_choices(config),
    )
    return with_counts(
        dataset,
        repeats=folder.repeats,
        loss_weight=folder.loss_weight,
        regularization=folder.regularization,
        caption_prefix=folder.caption_prefix,
        caption_suffix=folder.caption_suffix,
    )


def _read_pictures(
    folder: Path,
    missing_caption: str,
    *,
    setting: str,
    label: str = "",
    tally: Tally | None = None,
    weighing: bool = False,
    painting: str | None = None,
    **choices: Any,
) -> Dataset:
    """As `read_folder`, not counted; a `label` stands before the names, as a folder does. Masks
    that are read are for `weighing` the loss, or say what of a picture is for `painting`.
    """
    found = scan_folder(folder, missing_caption, setting=setting, **choices)
    about = "held_out" if setting == "validation_data_dir" else "train"
    without = [path.name for path in found.pictures if path.name not in found.masks.of]
    tally = tally or Tally()
    _tell(tally, about, folder, found)
    _tell_masks(tally, about, folder, {"no_mask": weighing, "no_hole": painting == "both"}, without)
    faults = list(found.faults)
    if painting == "files":
        faults += [f"{name} has no mask, which inpainting_masks files asks for" for name in without]
    if faults:
        raise DataError(
            listed(f"{setting} '{folder}' has captions or masks that cannot be used", faults)
        )
    sources = [{"path": str(path), "bytes": None} for path in found.pictures]
    masks = {name: str(path) for name, path in found.masks.of.items()}
    rows = (
        (f"{label}/{name}" if label else name, found.captions[name], masks.get(name))
        for name in (path.name for path in found.pictures)
    )
    return with_words(dataset_of([{"image": sources}], _PICTURES), rows)


def _tell(tally: Tally, about: str, folder: Path, found: Folder) -> None:
    """Say which files are not used, and which pictures lack what others have."""
    lacking = [name for name, it in found.captions.items() if it.source in ("file name", "none")]
    masks = [path.name for path in found.masks.alone]
    columns = list(found.metadata.unused)
    kinds = {
        "unused": ("not used", found.unused),
        "unused_columns": ("columns not used", columns),
        "no_caption": ("without a caption", lacking),
        "masks_alone": ("masks without a picture", masks),
    }
    for kind, (words, names) in kinds.items():
        source = found.metadata.file if kind == "unused_columns" else folder
        tally.add(about, kind, words, names, source=source)


def _tell_masks(
    tally: Tally, about: str, folder: Path, kinds: dict[str, bool], names: list[str]
) -> None:
    """Say what becomes of pictures without a mask, if it is of these kinds."""
    words = {
        "no_mask": "weighted evenly, since they have no mask",
        "no_hole": "painted where it is drawn, since they have no mask",
    }
    for kind in (kind for kind, so in kinds.items() if so):
        tally.add(about, kind, words[kind], names, source=folder)


def scan_folder(
    folder: Path,
    missing_caption: str,
    *,
    setting: str,
    word_regex: str = "",
    join_string: str = " ",
    caption_column: str = "text",
    caption_lines: bool = False,
    mask_files: bool = False,
) -> Folder:
    """What the folder holds, with everything that is wrong with its captions.

    See `CaptionReader` for where these are found. Masks are no pictures; `mask_files` says whether
    they are used. Raises `DataError` naming the `setting` if there
    is no such folder or no picture in it.
    """
    if not folder.is_dir():
        raise DataError(
            f"{setting} '{folder}' is not a folder. Give the folder that holds the pictures."
        )
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in ENDINGS and not is_mask(path)]
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
    masks = find_masks(files if mask_files else [], pictures)
    unused = _unused(files, pictures, masks, metadata.file)
    return Folder(pictures, captions, unusable, others, unused, metadata, masks)


def examples(dataset: Dataset, description: str) -> Iterator[Example]:
    """Go through the dataset with a progress bar."""
    yield from tqdm(examples_of(dataset), description, len(dataset), unit="picture", leave=False)


def examples_of(dataset: Dataset) -> Iterator[Example]:
    """Go through the dataset."""
    rows: Any = dataset
    for row in rows:
        yield Example(
            row["name"], row["image"], row["caption"], tuple(row["other_captions"]), row["mask"]
        )


_PICTURES = Features({"image": ImageFeature(decode=False)})


def _unused(
    files: list[Path], pictures: list[Path], masks: Masks, metadata_file: str | None
) -> list[str]:
    used = {*pictures, *(path.with_suffix(".txt") for path in pictures)}
    used |= {*masks.of.values(), *masks.alone}  # the latter are named apart
    return [
        path.name + "/" * path.is_dir()
        for path in files
        if path not in used and path.name != metadata_file
    ]
