"""Caches for tests: of real pictures through the real path, and of given tensors."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from hn.config import DataConfig
from hn.data.cache.caching import Cache, cache_pictures
from hn.data.cache.encoding import Encoder
from hn.data.cache.index import IDENTITY, SCHEMA, Index, digest_of
from hn.data.cache.latents import Latents
from hn.data.cache.store import Store, key_of
from hn.data.cache.workers import ALONE, Workers
from hn.data.pictures.buckets import step_of
from hn.data.pictures.decoding import survey
from hn.data.pictures.framing import Framing
from hn.data.pictures.images import examples_of
from hn.diffusion.base_model import BaseModel


def encode(
    folder: Path,
    dataset: Dataset,
    base: BaseModel,
    config: DataConfig,
    seed: int = 0,
    workers: Workers = ALONE,
) -> Latents:
    """The pictures of a data set through the cache in `folder`."""
    cache = Cache(folder)
    encoder = Encoder(base, config, Framing.of(config, step_of(base.name)), seed)
    index = cache_pictures(dataset, encoder, cache, "train", workers)
    return Latents(index, cache.store, config.latent_sampling, seed)


def make(
    folder: Path,
    moments: Tensor,
    sampling: str = "deterministic",
    seed: int = 0,
    weights: Tensor | None = None,
    **columns: list[Any],
) -> Latents:
    """Latents of given moments (N, V, 2, C, h, w) and weights (N, crops, 1, h, w).

    `columns` replace those of the index, such as sizes and repeats.
    """
    store = Store(folder / "tensors")
    keys = [
        [key_of(f"{row} {variant}") for variant in range(moments.shape[1])]
        for row in range(len(moments))
    ]
    store.write("moments", [key for row in keys for key in row], list(moments.flatten(0, 1)))
    weight_keys = [None if weights is None else key_of(f"{row}") for row in range(len(moments))]
    if weights is not None:
        store.write("weights", weight_keys, list(weights))
    rows = range(len(moments))
    values: dict[str, list[Any]] = {
        "name": [f"{row}.png" for row in rows],
        "caption": [f"picture {row}" for row in rows],
        "other_captions": [[] for _ in rows],
        "caption_source": ["text file" for _ in rows],
        "caption_prefix": [None for _ in rows],
        "caption_suffix": [None for _ in rows],
        "content": [bytes([row % 256]) * 32 for row in rows],
        "mask": [None for _ in rows],
        "width": [16 for _ in rows],
        "height": [16 for _ in rows],
        "size": [[16, 16] for _ in rows],
        "keys": keys,
        "corners": [[[0, 0]] * len(row) for row in keys],
        "weights": weight_keys,
        "repeats": [1 for _ in rows],
        "loss_weight": [1.0 for _ in rows],
        "regularization": [False for _ in rows],
    }
    path = folder / "pictures" / "train.arrow"
    about = {"settings": {}, "autoencoder": "none", "variants": moments.shape[1]}
    Index.write(path, [pa.table(values | columns, SCHEMA)], about)
    return Latents(Index.open(path), store, sampling, seed)


def sample(latents: Latents, picture: int, variant: int, step: int, slot: int) -> Tensor:
    """The latents (C, h, w) of one slot."""
    return latents.samples([picture], [variant], step, [slot])[0]


def means(latents: Latents) -> Tensor:
    """The means (N, V, C, h, w) of all variants, where all have one size."""
    return torch.stack(
        [
            torch.stack([latents.moments(row, variant)[0] for variant in range(latents.variants)])
            for row in range(len(latents))
        ]
    )


def all_weights(latents: Latents) -> Tensor | None:
    """The loss weights (N, V, 1, h, w) of all variants."""
    rows = [
        latents.weights([row] * latents.variants, range(latents.variants))
        for row in range(len(latents))
    ]
    return None if rows[0] is None else torch.stack(rows)


def digest(dataset: Dataset) -> str:
    """The digest that an index of these pictures has."""
    found = [*map(survey, examples_of(dataset))]
    columns = {
        "content": [it.content for it in found],
        "mask": [it.mask for it in found],
        **{name: dataset[name][:] for name in IDENTITY if name not in ("content", "mask")},
    }
    return digest_of(pa.table(columns, pa.schema([SCHEMA.field(name) for name in columns])))
