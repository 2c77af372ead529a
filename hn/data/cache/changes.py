"""What of the pictures changed since a run began: kept beside it, named when it is to go on."""

from pathlib import Path

import pyarrow as pa

from hn.data.cache.index import IDENTITY, Index
from hn.data.cache.store import write_table
from hn.errors import named

FILE = "pictures.arrow"
_WORDED = {
    "content": "picture",
    "caption": "caption",
    "other_captions": "caption",
    "caption_prefix": "caption_prefix",
    "caption_suffix": "caption_suffix",
    "mask": "mask",
    "repeats": "repeats",
    "loss_weight": "loss_weight",
    "regularization": "regularization",
}


def keep(index: Index, folder: Path) -> None:
    """Write what the pictures of a run are into its folder. Raises `StorageError`."""
    write_table(folder / FILE, index.table.select(IDENTITY).replace_schema_metadata(None))


def changes(folder: Path, index: Index) -> list[str]:
    """What is different from what was kept, a line for each kind; none if nothing was kept."""
    path = folder / FILE
    if not path.is_file():
        return []
    kept = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    before = {row["name"]: row for row in kept.to_pylist()}
    now = {row["name"]: row for row in index.table.select(IDENTITY).to_pylist()}
    both = [name for name in now if name in before]
    found = {
        "gone": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
    }
    for column, word in _WORDED.items():
        differing = [name for name in both if now[name][column] != before[name][column]]
        found[f"another {word}"] = found.get(f"another {word}", []) + differing
    lines = [f"{what}: {named(names)}" for what, names in found.items() if names]
    return lines or ["the order: theirs, or that of their folders"]
