"""The card of a pushed cache: what it holds, in words, and how `datasets` reads it."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from hn.hub.public import public, table
from hn.hub.selection import read_arrow

SETTINGS = b"hn"  # the key of the settings in the schema's metadata, as JSON
MAX_SETTINGS = 60


@dataclass
class Contents:
    """What the files of a cache hold."""

    size: int = 0  # bytes
    pictures: dict[str, int] = field(default_factory=dict)  # by split
    sizes: Counter[str] = field(default_factory=Counter)  # of the training pictures
    entries: Counter[str] = field(default_factory=Counter)  # by kind
    settings: dict[str, str] = field(default_factory=dict)


def read_contents(files: dict[str, Path]) -> Contents:
    """Read every file of a cache, by its path in the repository.

    Raises `DataError` that names a file which is not whole.
    """
    contents = Contents()
    for name, path in tqdm(
        files.items(), desc="reading the cache", unit="file", leave=False, disable=len(files) < 100
    ):
        table = read_arrow(path)
        contents.size += path.stat().st_size
        if name.startswith("tensors/"):
            contents.entries.update(_column(table, "kind", "entry"))
            continue
        contents.pictures[path.stem] = len(table)
        sizes = _column(table, "size", ["unknown"])
        contents.sizes.update(" x ".join(map(str, size)) for size in sizes)
        if path.stem == "train":
            contents.settings = _settings(table.schema.metadata or {})
    return contents


def write_card(repo_id: str, contents: Contents) -> str:
    """The text of `README.md`; the same for the same contents."""
    splits = "\n".join(
        f"  - split: {split}\n    path: pictures/{split}.arrow" for split in contents.pictures
    )
    return _CARD.format(
        name=repo_id.partition("/")[2],
        repo_id=repo_id,
        splits=splits,
        pictures=_counted(contents.pictures),
        entries=_counted(contents.entries),
        sizes=_counted(dict(contents.sizes.most_common(20))),
        size=_readable(contents.size),
        settings=table(("setting", "value"), contents.settings.items()) or "Not recorded.",
    )


def _column(table: pa.Table, name: str, missing: Any) -> Iterable[Any]:
    """The values of a column; `missing` for each row where there is no such column, or none."""
    if name not in table.column_names:
        return [missing] * len(table)
    return (missing if value is None else value for value in table[name].to_pylist())


def _settings(metadata: dict[bytes, bytes]) -> dict[str, str]:
    """The recorded settings by dotted name, as text; empty where there are none to be read."""
    try:
        found = json.loads(metadata.get(SETTINGS, b"{}"))
    except ValueError:
        return {}
    return dict(list(_flat(found, ""))[:MAX_SETTINGS]) if isinstance(found, dict) else {}


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        items = value if isinstance(value, list) else [value]
        yield name, " ".join(map(public, items))


def _counted(counts: dict[str, int]) -> str:
    """As "train (80), validation (20)"."""
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _readable(size: int) -> str:
    if size < 10_000:
        return f"{size} bytes"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


_CARD = """---
pretty_name: "{name}"
tags:
- stable-diffusion
- latents
configs:
- config_name: pictures
  default: true
  data_files:
{splits}
- config_name: tensors
  data_files:
  - split: train
    path: tensors/*.arrow
---

# {name}

Pictures and captions, encoded with the autoencoder (and, where it holds contexts, the text encoder)
of a Stable Diffusion, to train hypernetworks from without encoding them again.

**Whoever has these latents has the pictures:** the autoencoder turns them back, nearly as they
were.

| | |
|---|---|
| pictures | {pictures} |
| entries | {entries} |
| size in pixels | {sizes} |
| all files | {size} |

```python
from datasets import load_dataset

pictures = load_dataset("{repo_id}", "pictures")
tensors = load_dataset("{repo_id}", "tensors", split="train")
```

## pictures

One row for each picture.

| column | what it is |
|---|---|
| name | the picture's name in its set |
| captions | its captions, one or several |
| source | where the captions were found |
| content | SHA-256 of the picture's file |
| mask | SHA-256 of its mask's file, if it has one |
| width, height | its size in pixels before it was cut |
| size | width and height of what was encoded |
| keys | its entries in `tensors`: one for each crop and mirror image, then those of inpainting |
| corners | left and top of what each shows of the resized picture, or of its mirror image |
| weights | the entry that says how much each place counts in the loss; empty: all the same |
| repeats | how often it comes in an epoch |
| loss_weight | what its loss is multiplied with |
| regularization | whether it is there to keep what the model knew before |

## tensors

One row for each entry, found by its key, which is a hash of all that the entry depends on.

| column | what it is |
|---|---|
| key | 16 bytes |
| kind | what it is |
| dtype | fp32, fp16 or bf16 |
| shape | its dimensions |
| values | the numbers, little-endian, in C order |

## Settings it was made with

{settings}
"""
