"""Captions in a `metadata.jsonl` or `metadata.csv` beside the pictures, as for HF's `imagefolder`.

Read by us, strictly: datasets' own readers guess types, so that a caption "NA" becomes none at all,
and say nothing of a row whose picture is missing.
https://huggingface.co/docs/datasets/image_dataset
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from hn.data.words.captions import check_caption
from hn.data.words.text_files import read_text
from hn.errors import DataError

NAMES = ("metadata.jsonl", "metadata.csv")
MAX_BYTES = 256 * 1024 * 1024
FILE_NAME = "file_name"
_SHOWN = 60  # characters of a value


@dataclass(frozen=True)
class Row:
    """The captions of one picture, and the line in which they stand; none: it is left blank."""

    line: int
    captions: list[str]


@dataclass
class Metadata:
    """The rows of a file by the picture's name, and what is wrong with others."""

    file: str = ""  # its name
    rows: dict[str, Row] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    unused: dict[str, None] = field(default_factory=dict)  # columns, in their order

    def add(self, line: int, record: dict[str, Any], column: str) -> None:
        """Take a row. Raises `ValueError` for one that cannot be used."""
        for needed, remedy in ((FILE_NAME, ""), (column, "; caption_column chooses another")):
            if needed not in record:
                raise ValueError(f"it has no {needed!r}, but {list(record)}{remedy}")
        name = _file_name(record[FILE_NAME])
        if name in self.rows:
            raise ValueError(f"{name!r} has its row in line {self.rows[name].line} already")
        self.rows[name] = Row(line, _captions(record[column], column))
        self.unused |= dict.fromkeys(key for key in record if key not in (FILE_NAME, column))

    def check_pictures(self, names: set[str]) -> None:
        """Find fault with rows of pictures that are none of these."""
        self.faults += [
            f"{self.file} line {row.line}: there is no picture {name!r}"
            + ", and sub-folders are not read" * ("/" in name)
            for name, row in self.rows.items()
            if name not in names
        ]


def read_metadata(folder: Path, column: str) -> Metadata:
    """What the metadata file of a folder says, captions being in this column; empty without one.

    Raises `DataError` if there are two, or if it is no UTF-8 text; what is wrong with a row is in
    `faults`, with the number of its line.
    """
    files = [folder / name for name in NAMES if (folder / name).exists()]
    if not files:
        return Metadata()
    if len(files) > 1:
        raise DataError(f"'{folder}' holds {' and '.join(NAMES)}: keep one of the two")
    file = files[0]
    text = read_text(file, MAX_BYTES)
    metadata = Metadata(file.name)
    for line, record in _csv_records(text) if file.suffix == ".csv" else _json_records(text):
        try:
            if isinstance(record, ValueError):
                raise record
            metadata.add(line, record, column)
        except ValueError as error:
            metadata.faults.append(f"{file.name} line {line}: {error}")
    return metadata


def _json_records(text: str) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """The number of every line that is not blank with its object, or why it is none."""
    for line, content in enumerate(text.split("\n"), start=1):  # JSON may hold U+2028
        if content.strip():
            try:
                record = json.loads(content, object_pairs_hook=_without_repetition)
            except json.JSONDecodeError as error:  # its own words count lines from this one
                reason = f"{error.msg} at character {error.pos}"
                yield line, ValueError(f"it is not valid JSON: {reason}")
                continue
            except (ValueError, RecursionError) as error:
                yield line, ValueError(f"it is not valid JSON: {error}")
                continue
            if isinstance(record, dict):
                yield line, record
            else:
                yield line, ValueError(f"it must be a JSON object; found {_shown(record)}")


def _csv_records(text: str) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """The number of the line where each row begins with its fields, or why they are none."""
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for fields in reader:
            if fields and not header:
                header = fields
                if len(set(header)) < len(header):
                    yield line, ValueError(f"a column stands twice in {header}")
                    return
            elif fields and len(fields) != len(header):
                yield (
                    line,
                    ValueError(f"it has {len(fields)} fields; the columns are {header}"),
                )
            elif fields:
                yield line, dict(zip(header, fields, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        yield line, ValueError(f"it is not valid CSV: {error}")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a name stands twice in {[name for name, _ in pairs]}")
    return dict(pairs)


def _file_name(value: Any) -> str:
    """A path within the folder, as `Path` writes it."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{FILE_NAME} must be the name of a picture; found {_shown(value)}")
    windows = PureWindowsPath(value)  # knows both kinds of slash
    if PurePosixPath(value).is_absolute() or windows.is_absolute() or ".." in windows.parts:
        raise ValueError(f"{FILE_NAME} {value!r} leaves the folder; give the name alone")
    return str(PurePosixPath(value))


def _captions(value: Any, column: str) -> list[str]:
    """The text or texts of a row; none if it is blank."""
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{column} must be a text or a list of texts; found {_shown(value)}")
    for text in texts:
        check_caption(text)
    written = [text for text in texts if text.strip()]
    if written and len(written) < len(texts):
        raise ValueError(f"{column} has a blank caption among others; found {_shown(value)}")
    return written


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
