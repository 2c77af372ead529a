"""A finished run, opened again to be evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from hn.build.models import build_base_model, build_canvas
from hn.build.pictures import build_cache, build_datasets, build_latents, latents_of, pictures_of
from hn.build.prompts import build_prompts
from hn.config import SECTIONS, Config
from hn.data.cache.caching import Cache
from hn.data.cache.contexts import Contexts
from hn.data.cache.index import Index
from hn.data.cache.latents import Latents
from hn.data.streaming.stream import Stream
from hn.diffusion.base_model import BaseModel
from hn.errors import DataError
from hn.evaluation.bench import Bench, Options
from hn.evaluation.drawing import Studio
from hn.evaluation.paired import Pictures

NEIGHBOURS = 2000  # training pictures that drawn ones are compared with


@dataclass(frozen=True)
class Opened:
    """What an evaluation needs of a run; `about` and `source` as `evaluate` wants them."""

    bench: Bench
    about: dict[str, Any]
    source: str


def build_evaluated(
    written: Config, config: Config, accelerator: Accelerator, options: Options
) -> Opened:
    """From the settings of a run, as `written` and as reopened.

    Raises `DataError` if it has no pictures to measure on.
    """
    base = build_base_model(config, accelerator)
    cache = build_cache(config)
    contexts = Contexts(base, cache.store)
    held_out, trained = (
        pictures_of(latents, build_prompts(config, latents.index), contexts, _rows(latents, split))
        if latents
        else None
        for split, latents in _latents(config, accelerator, base, cache).items()
    )
    if held_out is None and trained is None:
        raise DataError(
            f"{config.network.name} kept no pictures to measure on: it streamed them, and held "
            "none out. Train with validation_data_dir."
        )
    bench = Bench(
        base=base,
        contexts=contexts,
        studio=Studio(base, contexts, config, build_canvas(config, base)),
        held_out=held_out,
        trained=trained,
        seed=config.training.seed,
        options=options,
    )
    return Opened(bench, about(written), _source(written, held_out))


def about(config: Config) -> dict[str, Any]:
    """What a report says of a run: no path but its last part."""
    return {
        "name": config.network.name,
        "base_model": _bare(config.model.pretrained_model_name_or_path),
        "settings": {
            section: {
                f.name: _bare(value)
                for f in fields(getattr(config, section))
                if (value := getattr(getattr(config, section), f.name)) is not None
            }
            for section in SECTIONS
        },
    }


def _latents(
    config: Config, accelerator: Accelerator, base: BaseModel, cache: Cache
) -> dict[str, Latents | None]:
    """Those of held-out and of training pictures; what a shared cache lacks is encoded."""
    if config.data.cached_data_dir is not None:
        return {
            split: cached_latents(config, base, cache, split) for split in ("validation", "train")
        }
    datasets = build_datasets(config, accelerator)
    found = {}
    for split, dataset in (("validation", datasets.held_out), ("train", datasets.train)):
        assert not isinstance(dataset, Stream)  # which leaves nothing in a shared cache
        found[split] = dataset and build_latents(config, accelerator, dataset, base, cache, split)
    return found


def cached_latents(config: Config, base: BaseModel, cache: Cache, split: str) -> Latents | None:
    """What a cache has of a split; none if there is no index of it."""
    if not cache.index_path(split).is_file():
        return None
    index = Index.open(cache.index_path(split))
    index.check(cache.store, base.vae_fingerprint, corners=base.numbers_told > 0)
    return latents_of(config, base, index, cache)


def _rows(latents: Latents, split: str) -> Sequence[int]:
    if split == "validation":
        return range(len(latents))
    own = np.flatnonzero(~np.array(latents.index.table.column("regularization"), dtype=bool))
    count = min(NEIGHBOURS, len(own))
    return own[np.linspace(0, len(own) - 1, count).round().astype(int)].tolist()


def _source(config: Config, held_out: Pictures | None) -> str:
    if held_out is None:
        return "none"
    return "validation_split" if config.data.validation_split else "validation_data_dir"


def _bare(value: Any) -> Any:
    """A setting without the folders that a path names; ids of the hub stay as they are."""
    if isinstance(value, tuple):
        return [_bare(it) for it in value]
    if not isinstance(value, str) or not value:
        return value
    path = Path(value)
    local = path.is_absolute() or value[0] in ".~" or "\\" in value or path.exists()
    return path.name if local and ("/" in value or "\\" in value) else value
