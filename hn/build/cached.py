"""A cache on its own, without training."""

from dataclasses import dataclass, replace

from accelerate import Accelerator
from datasets import Dataset

from hn.build.models import build_base_model, check_base_model
from hn.build.pictures import (
    build_cache,
    build_datasets,
    build_encoder,
    build_held_out,
    build_latents,
)
from hn.build.prompts import build_prompts, encode_prompts
from hn.config import Config
from hn.data.cache.caching import Cache, Verified, verify
from hn.data.cache.contexts import Contexts
from hn.data.cache.encoding import Encoder
from hn.data.cache.latents import Latents


@dataclass(frozen=True)
class Cached:
    """A cache that holds everything that its settings ask for."""

    cache: Cache
    latents: Latents
    dataset: Dataset
    encoder: Encoder

    def __str__(self) -> str:
        return f"{len(self.latents)} pictures, {len(self.cache.store)} entries"

    def verify(self, count: int) -> Verified:
        """Encode so many of the pictures again, evenly chosen, and compare."""
        return verify(self.dataset, self.encoder, self.latents.index, self.cache.store, count)


def build_cached(config: Config, accelerator: Accelerator) -> Cached:
    """Encode what the cache lacks of pictures, held-out pictures and prompts."""
    check_base_model(config)
    datasets = build_datasets(config, accelerator)
    assert isinstance(datasets.train, Dataset)  # settings see to it that it is neither else
    # Of the base model only the encoders are needed, which each process has.
    config = replace(config, model=replace(config.model, shard_base_model=False))
    base = build_base_model(config, accelerator)
    encoder = build_encoder(config, base)
    cache = build_cache(config)
    contexts = Contexts(base, cache.store)
    build_held_out(config, accelerator, datasets, base, contexts, cache)
    latents = build_latents(config, accelerator, datasets.train, base, cache, "train")
    encode_prompts(config, accelerator, build_prompts(config, latents.index), contexts, base)
    return Cached(cache, latents, datasets.train, encoder)
