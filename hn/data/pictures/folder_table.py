"""Several folders of pictures, and how much each counts: a TOML file of `[[folder]]` tables.

[[folder]]
path = "portraits"        # from the file's own place
repeats = 3               # so many times in an epoch
loss_weight = 0.5         # what the loss of its pictures is multiplied with

[[folder]]
path = "people"
regularization = true     # what was known before; captions are used alone

# also, over the settings of these names: missing_caption, caption_prefix, caption_suffix
"""

import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hn.config import DataConfig
from hn.errors import DataError, meant, shown

MAX_REPEATS = 1_000_000
MIN_LOSS_WEIGHT = 1e-6
_MISSING = get_args(get_type_hints(DataConfig)["missing_caption"])


@dataclass(frozen=True, kw_only=True)
class TrainFolder:
    """One table; what is None is as the settings say. `label` names the folder, uniquely."""

    path: Path
    repeats: int = 1
    loss_weight: float = 1.0
    regularization: bool = False
    missing_caption: str | None = None
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    label: str = ""


_KEYS = tuple(field.name for field in fields(TrainFolder) if field.name != "label")
# What a key may be, in words and as a test. A bool is an int to Python, but not to us.
_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "path": (
        "the name of a folder",
        lambda value: isinstance(value, str) and value != "" and "\0" not in value,
    ),
    "repeats": (
        f"a whole number from 1 to {MAX_REPEATS}",
        lambda value: type(value) is int and 1 <= value <= MAX_REPEATS,
    ),
    "loss_weight": (
        f"a number from {MIN_LOSS_WEIGHT:f} to {1 / MIN_LOSS_WEIGHT:.0f}",
        lambda value: (
            type(value) in (int, float) and MIN_LOSS_WEIGHT <= value <= 1 / MIN_LOSS_WEIGHT
        ),
    ),
    "regularization": ("true or false", lambda value: isinstance(value, bool)),
    "missing_caption": (" or ".join(_MISSING), lambda value: value in _MISSING),
    "caption_prefix": ("a text", lambda value: isinstance(value, str)),
    "caption_suffix": ("a text", lambda value: isinstance(value, str)),
}


def read_folder_table(file: Path) -> list[TrainFolder]:
    """The folders of a table, in its order.

    Raises `DataError` naming everything that is wrong: with keys and values, folders that are not
    there or stand twice, a table in which all pictures are for regularization.
    """
    tables, faults = _tables(file)
    seen: dict[str, int] = {}
    for number, table in enumerate(tables, start=1):
        wrong = _faults(table) or _path_faults(file.parent / table["path"], number, seen)
        faults += [f"[[folder]] {number}: {fault}" for fault in wrong]
    if all(table.get("regularization") is True for table in tables):
        faults.append("every folder is for regularization: add one to learn from")
    if faults:
        raise DataError("\n  ".join([f"train_folders '{file}' cannot be used:", *faults]))
    return _entries(file, tables)


def _tables(file: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The tables of a file, and what stands beside them. Raises `DataError` if there is none."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"train_folders: cannot read '{file}': {error}") from error
    tables = content.get("folder")
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise DataError(
            f"train_folders '{file}' holds no [[folder]] table, but {shown(list(content))}. Write "
            'one for each folder: [[folder]], and below it path = "..."'
        )
    return tables, [
        f"unknown {shown(key)}{meant(key, ('folder',))}; there is nothing but [[folder]] tables"
        for key in content
        if key != "folder"
    ]


def _faults(table: dict[str, Any]) -> list[str]:
    """What is wrong with the keys and values of one table."""
    faults = [
        f"unknown key {shown(key)}{meant(key, _KEYS)}; the keys are {', '.join(_KEYS)}"
        for key in table
        if key not in _KEYS
    ]
    if "path" not in table:
        faults.append("it has no path")
    return faults + [
        f"{key} must be {_ALLOWED[key][0]}; found {shown(value)}"
        for key, value in table.items()
        if key in _ALLOWED and not _ALLOWED[key][1](value)
    ]


def _path_faults(path: Path, number: int, seen: dict[str, int]) -> list[str]:
    """What is wrong with the folder itself; `seen` tells in which table each stood first."""
    first = seen.setdefault(os.path.realpath(path), number)
    if not path.is_dir():
        return [f"path '{path}' is not a folder"]
    if first != number:
        return [f"path '{path}' is the folder of [[folder]] {first}: set repeats there instead"]
    return []


def _entries(file: Path, tables: list[dict[str, Any]]) -> list[TrainFolder]:
    """Labelled by their own names, or as they are written if two share one; a lone one by none."""
    paths = [file.parent / table["path"] for table in tables]
    labels = [path.resolve().name for path in paths] if len(paths) > 1 else [""]
    if len(set(labels)) < len(labels):
        labels = [table["path"] for table in tables]
    return [
        TrainFolder(**table | {"path": path, "label": label})
        for table, path, label in zip(tables, paths, labels, strict=True)
    ]
