"""Rows of a streamed HF dataset: the columns that count, and what makes an example of them."""

from typing import Any

from datasets import Image, IterableDataset, LargeList, List, Value

from hn.config import DataConfig
from hn.data.pictures.decoding import Example
from hn.data.pictures.hub_datasets import check_columns, wanted_feature
from hn.data.words.captions import check_caption
from hn.data.words.folder_captions import lines_of
from hn.data.words.prompts import parsed
from hn.errors import DataError, shown


def with_columns(dataset: IterableDataset, config: DataConfig) -> IterableDataset:
    """Only the columns of pictures, undecoded, and of captions. Raises `DataError`."""
    features = dataset.features
    if features is None:
        raise DataError(
            f"the columns of {config.dataset_name} are not known before it is read; streaming is "
            "for parquet, arrow and webdataset"
        )
    check_columns(list(features), config)
    dataset = dataset.select_columns([config.image_column, config.caption_column])
    for setting, fits in (("image_column", _holds_pictures), ("caption_column", _holds_texts)):
        column = getattr(config, setting)
        words, feature = wanted_feature(setting, features[column])
        if not fits(features[column]):
            raise DataError(
                f"{setting} '{column}' of {config.dataset_name} does not hold {words}, but "
                f"{features[column]}: choose another column of {list(features)}"
            )
        dataset = dataset.cast_column(column, feature)
    return dataset


def to_example(place: str, row: dict[str, Any], config: DataConfig) -> Example:
    """The row as an example. Raises `ValueError` or `DataError` for what cannot be used."""
    source = row[config.image_column]
    path = source and source["path"]
    name = f"{place} ({shown(path)})" if path else place
    try:
        if source is None:
            raise ValueError("it has no picture")
        captions = _captions(row[config.caption_column], config)
        for caption in captions:
            parsed(caption, config)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return Example(name, source, captions[0], tuple(captions[1:]))


def _holds_pictures(feature: Any) -> bool:
    """Whether a column holds pictures as files, by its type alone."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, Image) or getattr(feature, "dtype", "").endswith("binary")


def _holds_texts(feature: Any) -> bool:
    """Whether a column holds texts, or what can be written as texts, by its type alone."""
    if isinstance(feature, List | LargeList):
        feature = feature.feature
    return isinstance(feature, Value)


def _captions(value: Any, config: DataConfig) -> list[str]:
    """The captions in a row, at least one. Raises `ValueError` if there is none, or for one that is
    none.
    """
    captions = value if isinstance(value, list) else [value]
    written = captions and all(str(caption or "").strip() for caption in captions)
    if not written and config.missing_caption not in ("empty", "template"):
        raise ValueError("it has no caption; missing_caption empty or template would take it")
    for caption in captions:
        check_caption(caption or "")
    filled = [caption or "" for caption in captions] or [""]
    return lines_of(filled) if config.caption_lines else filled
