"""A cache of very many pictures, and what training reads of it, measured in a process of its own.

    python -m tests.scale <model> <cache> <first step> <batches>

prints the numbers as JSON. The entries are small, so that the disk takes a million; their first
values say which entry it is.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from torch import Tensor

from hn import build, cli, launch
from hn.config import Config
from hn.data.batches import Batches
from hn.data.cache.caching import PER_SHARD
from hn.data.cache.contexts import Contexts
from hn.data.cache.index import SCHEMA, Index
from hn.data.cache.store import Store, key_of
from hn.diffusion.base_model import BaseModel

SIZES = ((64, 64), (96, 48), (48, 96), (80, 48), (48, 80))
CELL = 16  # pixels for each cell of latents
CAPTIONS = 500
BATCH = 64
WARM_UP = 200  # batches
EXACT = 1024  # whole numbers up to twice this are float16's, too


def make(folder: Path, pictures: int, autoencoder: str, cell: int = CELL) -> None:
    """A cache of two variants of each picture."""
    store = Store(folder / "tensors")
    about = {"settings": {"random_flip": True, "latent_cache_dtype": "fp16"}}
    parts = [*_parts(store, pictures, cell)]
    path = folder / "pictures" / "train.arrow"
    Index.write(path, parts, {**about, "autoencoder": autoencoder, "variants": 2})


def signs(latents: Tensor) -> Tensor:
    """What the entries (B, C, h, w) say of themselves: picture and variant (B, 2)."""
    high, low, variant = latents.flatten(1)[:, :3].long().unbind(1)
    return torch.stack([high * EXACT + low, variant], 1)


def _parts(store: Store, pictures: int, cell: int) -> Iterator[pa.Table]:
    for start in range(0, pictures, PER_SHARD):
        rows = range(start, min(start + PER_SHARD, pictures))
        keys = [[key_of(f"{row} {variant}") for variant in range(2)] for row in rows]
        tensors = [entry for row in rows for entry in _entries(row, cell)]
        store.write("moments", [key for pair in keys for key in pair], tensors)
        yield _part(rows, keys)


def _entries(row: int, cell: int) -> Iterable[Tensor]:
    """Moments (2, 4, h, w) of both variants; a deviation of 0, so that samples say the same."""
    width, height = SIZES[row % len(SIZES)]
    both = torch.zeros(2, 2, 4, height // cell, width // cell, dtype=torch.float16)
    flat = both.view(2, -1)
    flat[:, 0], flat[:, 1], flat[1, 2] = row // EXACT, row % EXACT, 1
    return both


def _part(rows: range, keys: list[list[bytes]]) -> pa.Table:
    count = len(rows)
    columns: dict[str, list[Any]] = {
        "name": [f"folder/picture-{row:09d}.png" for row in rows],
        "caption": [_caption(row) for row in rows],
        "other_captions": [[] for _ in rows],
        "caption_source": ["text file"] * count,
        "caption_prefix": [None] * count,
        "caption_suffix": [None] * count,
        "content": [key_of(f"{row}") * 2 for row in rows],
        "mask": [None] * count,
        "width": [SIZES[row % len(SIZES)][0] for row in rows],
        "height": [SIZES[row % len(SIZES)][1] for row in rows],
        "size": [SIZES[row % len(SIZES)] for row in rows],
        "keys": keys,
        "corners": [[(0, 0)] * len(row) for row in keys],
        "weights": [None] * count,
        "repeats": [1 + (row % 7 == 0) for row in rows],
        "loss_weight": [1.0] * count,
        "regularization": [False] * count,
    }
    return pa.table(columns, SCHEMA)


def _caption(row: int) -> str:
    number = row * 7919 % CAPTIONS
    words = "a picture of something, outdoors, in the evening, with details that take some words"
    return f"{words}, number {number}"


def measure(model: str, cache: str, first: int, batches: int) -> dict[str, Any]:
    """Open the cache as a run does, read `batches` batches from step `first`."""
    config, accelerator, base = _run(model, cache)
    before = memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start, cpu = time.perf_counter(), time.process_time()
    opened = _open(config, accelerator, base)
    opening = time.perf_counter() - start
    list(opened.at(first))
    found: dict[str, Any] = {
        "open": opening,
        "first_batch": time.perf_counter() - start,
        "first_batch_cpu": time.process_time() - cpu,
        "before": before,
        "opened": memory(),
    }
    read(opened, range(first, first + WARM_UP))
    found["warm"] = memory()
    found |= read(opened, range(first + WARM_UP, first + WARM_UP + batches))
    found["end"] = memory()
    found |= read_entries(opened, batches)
    return found


def _run(model: str, cache: str) -> tuple[Config, Accelerator, BaseModel]:
    flags = ["--pretrained_model_name_or_path", model, "--cached_data_dir", cache]
    flags += ["--output_dir", f"{cache}/runs", "--report_to", "none"]
    flags += ["--train_batch_size", str(BATCH), "--latent_sampling", "random"]
    config = cli.parse(flags)
    accelerator = launch.build_accelerator(config)
    config = launch.resolve(config, accelerator, launch.run_folder(config))
    base = build.build_base_model(config, accelerator)
    base.encode_prompts(["warm up"])
    return config, accelerator, base


def _open(config: Config, accelerator: Accelerator, base: BaseModel) -> Batches:
    datasets = build.build_datasets(config, accelerator)
    cache = build.build_cache(config)
    contexts = Contexts(base, cache.store)
    batches = build.build_batches(config, accelerator, datasets, base, contexts, cache)
    assert isinstance(batches, Batches)
    return batches


def read(batches: Batches, steps: range) -> dict[str, float]:
    """Pictures for each second of batches, and whether they are those that they should be."""
    start, cpu = time.perf_counter(), time.process_time()
    for step in steps:
        for batch in batches.at(step):
            assert signs(batch.latents)[:, 0].tolist() == batch.pictures
    count = len(steps) * BATCH
    return {
        "batches": count / (time.perf_counter() - start),
        "batches_cpu": count / (time.process_time() - cpu),
    }


def read_entries(batches: Batches, count: int) -> dict[str, float]:
    """Entries for each second that the store reads, 64 at random at a time."""
    index, store = batches._latents.index, batches._latents._store
    draw = np.random.default_rng(0)
    rows = draw.integers(0, len(index) // len(SIZES), count * BATCH) * len(SIZES)  # of one size
    keys = [index.keys(row)[0] for row in rows.tolist()]
    start, cpu = time.perf_counter(), time.process_time()
    for place in range(0, len(keys), BATCH):
        store.stack(keys[place : place + BATCH])
    return {
        "entries": len(keys) / (time.perf_counter() - start),
        "entries_cpu": len(keys) / (time.process_time() - cpu),
    }


def memory() -> dict[str, float]:
    """Resident memory of this process in MiB: all, its own, of mapped files, and the peak."""
    names = ("VmRSS", "RssAnon", "RssFile", "VmHWM")
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    found = {line[0][:-1]: int(line[1]) / 1024 for line in lines if line[0][:-1] in names}
    return {name: round(found[name], 1) for name in names}


if __name__ == "__main__":
    model, cache, first, batches = sys.argv[1:]
    print(json.dumps(measure(model, cache, int(first), int(batches))))
