"""The settings of `tools/check_dataset.py`; standard library only.

Those of the pictures have the names, defaults and limits of the trainer's, so that the answer is
the trainer's.
"""

import argparse
from pathlib import Path
from typing import get_args, get_type_hints

from hn.config import DataConfig
from hn.errors import OptionError
from hn.limits import data_faults

MOST_SHOWN = 1000
_OF_DATA = (
    "resolution",
    "resize_mode",
    "bucket_step",
    "max_aspect_ratio",
    "no_upscale",
    "native_size",
    "missing_caption",
    "filename_word_regex",
    "filename_join_string",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add them all."""
    add, default, hints = parser.add_argument, DataConfig(), get_type_hints(DataConfig)
    add("folder", type=Path, help="pictures with captions in .txt files")
    add("-o", "--output", type=Path, help="also draw a contact sheet, a .png outside the folder")
    add("--overwrite", action="store_true", help="replace the sheet if it is there")
    add("--max_pictures", type=int, default=120, help="on the sheet, evenly chosen (default 120)")
    add("--tokenizer", type=Path, help="a model's folder, to count tokens and for its step")
    add("--top", type=int, default=20, help="how many of the most frequent tags (default 20)")
    add("--json", action="store_true", help="for programs: everything, as one object")
    add("--resolution", type=int, nargs="+", default=default.resolution, metavar="SIDE")
    for name in ("resize_mode", "missing_caption"):
        add(f"--{name}", choices=get_args(hints[name]), default=getattr(default, name))
    add("--bucket_step", type=int, help="default: that of the model --tokenizer names, or 64")
    add("--max_aspect_ratio", type=float, default=default.max_aspect_ratio)
    for name in ("no_upscale", "native_size"):
        add(f"--{name}", action="store_true")
    add("--train_batch_size", type=int, default=1, help="mark buckets of fewer pictures")
    for name in ("filename_word_regex", "filename_join_string"):
        add(f"--{name}", default=getattr(default, name))


def data_of(args: argparse.Namespace) -> DataConfig:
    """The trainer's settings among the flags. Raises `OptionError` for any flag that cannot be."""
    values = {name: getattr(args, name) for name in _OF_DATA}
    values["resolution"] = tuple(values["resolution"])
    data = DataConfig(train_data_dir=str(args.folder), **values)
    faults = data_faults(data)
    if not 1 <= args.max_pictures <= MOST_SHOWN:
        faults.append(f"max_pictures must be from 1 to {MOST_SHOWN}; found {args.max_pictures}")
    if args.train_batch_size < 1:
        faults.append(f"train_batch_size must be at least 1; found {args.train_batch_size}")
    if args.top < 0:
        faults.append(f"top must not be negative; found {args.top}")
    if args.output is not None:
        faults += _output_faults(args.output, args.folder, args.overwrite)
    if faults:
        raise OptionError("\n".join(faults))
    return data


def _output_faults(output: Path, folder: Path, overwrite: bool) -> list[str]:
    faults = []
    if output.suffix.lower() != ".png":
        faults.append(f"output must end with .png; found '{output}'")
    if output.resolve().parent == folder.resolve():
        faults.append(f"output '{output}' would be trained on: choose another folder")
    elif output.is_dir() or (output.exists() and not overwrite):
        faults.append(f"output '{output}' is there already: choose another, or give --overwrite")
    return faults
