"""HF datasets: their pictures and what is written about them."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset, IterableDataset, LargeList, List, Value, load_dataset
from datasets import Image as ImageFeature
from pyarrow.lib import ArrowException
from tqdm import tqdm

from hn.config import DataConfig
from hn.data.pictures.columns import batches
from hn.data.words.captions import check_caption
from hn.data.words.folder_captions import Captioned, lines_of
from hn.errors import DataError
from hn.hub_access import LOG_IN, said


def read_hub_dataset(config: DataConfig) -> tuple[Dataset, Iterator[Captioned]]:
    """The pictures, undecoded, as a dataset of `image`, and the captions of each, one by one.

    A column of texts gives one caption each, a column of lists of texts several. Raises `DataError`
    for what cannot be loaded, for columns that are missing or hold something else, and, after the
    last row, for those without a caption.
    """
    dataset = load(config)
    assert isinstance(dataset, Dataset)
    check_columns(dataset.column_names, config)
    captions = _cast(dataset, "caption_column", config)
    pictures = _cast(dataset, "image_column", config)
    if config.image_column != "image":  # renaming to the same name is refused
        pictures = pictures.rename_column(config.image_column, "image")
    return pictures, _captioned(captions, config)


def load(config: DataConfig) -> Dataset | IterableDataset:
    """The dataset that the settings name; with `streaming` none of it is read yet.

    Raises `DataError`.
    """
    assert config.dataset_name is not None
    try:
        dataset = load_dataset(
            config.dataset_name,
            config.dataset_config_name,
            split=config.dataset_split,
            streaming=config.streaming,
        )
    except Exception as error:  # datasets raises a dozen kinds of its own
        raise DataError(
            f"dataset_name '{config.dataset_name}' cannot be loaded: {said(error)} It must be a "
            f"folder of data files or the id of an HF dataset; where that is private, {LOG_IN}."
        ) from error
    assert isinstance(dataset, Dataset | IterableDataset)
    return dataset


def check_columns(names: list[str], config: DataConfig) -> None:
    """Raises `DataError` naming the columns there are if those that the settings name are not."""
    for setting in ("image_column", "caption_column"):
        column = getattr(config, setting)
        if column not in names:
            raise DataError(
                f"{setting} '{column}' is not a column of {config.dataset_name}: it has {names}"
            )


def wanted_feature(setting: str, found: Any) -> tuple[str, Any]:
    """What the column of this setting should hold, in words and as a feature, given its own."""
    if setting == "image_column":
        return "pictures", ImageFeature(decode=False)
    several = isinstance(found, List | LargeList)
    return "texts or lists of texts", List(Value("string")) if several else Value("string")


def _cast(dataset: Dataset, setting: str, config: DataConfig) -> Dataset:
    """The column of this setting alone, as what it should hold. Raises `DataError`."""
    column = getattr(config, setting)
    words, feature = wanted_feature(setting, dataset.features[column])
    try:
        return dataset.select_columns(column).cast_column(column, feature)
    except (ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"{setting} '{column}' of {config.dataset_name} does not hold {words}, but "
            f"{dataset.features[column]}: choose another column"
        ) from error


def _captioned(dataset: Dataset, config: DataConfig) -> Iterator[Captioned]:
    """The captions of each row. Raises `DataError` for rows without, or with some that are none."""
    empty: list[int] = []
    rows = tqdm(
        (value for batch in batches(dataset, [config.caption_column]) for (value,) in batch),
        desc="reading captions",
        unit="row",
        total=len(dataset),
        leave=False,
    )
    for row, value in enumerate(rows):
        captions = value if isinstance(value, list) else [value]
        if not captions or not all(str(caption or "").strip() for caption in captions):
            empty.append(row)
        try:
            for caption in captions:
                check_caption(caption or "")
        except ValueError as error:
            raise DataError(f"row {row} of {config.dataset_name}: {error}") from error
        filled = [caption or "" for caption in captions] or [""]
        yield Captioned(lines_of(filled) if config.caption_lines else filled, "column")
    if empty and config.missing_caption not in ("empty", "template"):
        raise DataError(
            f"{len(empty)} rows of {config.dataset_name} have no caption, the first is row "
            f"{empty[0]}. Mend them, or set missing_caption to empty or template."
        )
