"""Pictures to latents, each encoded once: in this run, or with a cache on disk in any run."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hn import rng
from hn.config import DataConfig
from hn.data.cache import Latents
from hn.data.decoding import Example, open_picture, open_with_alpha, read_content
from hn.data.framing import Frame, frame, loss_weights, to_levels, to_tensor
from hn.data.images import examples, named
from hn.data.store import Store, key_of
from hn.diffusion.base_model import BaseModel, Moments
from hn.errors import DataError, NumericsError

FORMAT = 1  # of what is in the cache: another one is encoded anew
PER_SHARD = 256  # pictures; a killed run encodes at most so many again


@dataclass(frozen=True)
class Workers:
    """The processes that share the encoding: how many, which one this is, how to wait for all."""

    count: int = 1
    rank: int = 0
    wait: Callable[[], None] = lambda: None


ALONE = Workers()


def encode_latents(
    dataset: Dataset, base: BaseModel, config: DataConfig, seed: int, workers: Workers = ALONE
) -> Latents:
    """Latents of every picture in all its variants, with a progress bar.

    With `latent_cache_dir` only what is not there is encoded, each process its share. Raises
    `NumericsError` naming a picture whose latents are not finite, `DataError` one of which only
    transparent parts would be learnt.
    """
    weights = None
    if config.use_alpha_weights:
        weights = _alpha_weights(dataset, config, seed, base.downscaling)
    encoder = _Encoder(base, config, seed)
    if config.latent_cache_dir is None:
        numbered = enumerate(examples(dataset, "encoding pictures"))
        moments = torch.stack([encoder.encode(number, example) for number, example in numbered])
    else:
        store = Store(Path(config.latent_cache_dir))
        moments = torch.stack(_through_store(dataset, encoder, store, workers))
    # (N, V, 2, C, h, w)
    return Latents(
        Moments(moments[:, :, 0], moments[:, :, 1]), config.latent_sampling, seed, weights
    )


class _Encoder:
    """Encodes the variants of one picture, and says under which key the result may be kept."""

    def __init__(self, base: BaseModel, config: DataConfig, seed: int) -> None:
        self._base = base
        self._config = config
        self._seed = seed

    def encode(self, number: int, example: Example) -> Tensor:
        """Moments (V, 2, C, h, w) of a picture's variants: mean, then standard deviation."""
        own_colours = self._config.use_alpha_weights
        picture = open_with_alpha(example)[0] if own_colours else open_picture(example)
        frames = _frames(picture, self._config, self._seed, number)
        crops = [to_tensor(picture, seen) for seen in frames]
        moments = self._base.encode_images(_with_mirrored(crops, self._config))
        if not (moments.mean.isfinite().all() and moments.std.isfinite().all()):
            raise NumericsError(f"{example.name}: the autoencoder's latents are not finite numbers")
        return torch.stack([moments.mean, moments.std], dim=1)

    def key(self, number: int, example: Example) -> bytes:
        """The hash of all that the encoding depends on: the file, the autoencoder, the framing."""
        config = self._config
        framing = {
            "format": FORMAT,
            "autoencoder": self._base.vae_fingerprint,
            "size": config.size,
            "resize_mode": config.resize_mode,
            "places": _places(config, self._seed, number),
            "mirrored": config.random_flip,
            "own_colours": config.use_alpha_weights,
        }
        return key_of(json.dumps(framing), hashlib.sha256(read_content(example)).digest())


def _through_store(
    dataset: Dataset, encoder: _Encoder, store: Store, workers: Workers
) -> list[Tensor]:
    """The moments of all pictures; what the store lacks is encoded into it, shard by shard.

    Which pictures share a shard follows from their place in the data set alone, so a killed pass
    repeated, or made by several processes, leaves the same files.
    """
    numbered = enumerate(examples(dataset, "looking up pictures"))
    keys = [encoder.key(number, example) for number, example in numbered]
    if workers.rank == 0:
        _report(store, keys)
    workers.wait()  # for the report: another process may be done before it is made
    places = range(len(keys))
    shards = [places[start : start + PER_SHARD] for start in places[::PER_SHARD]]
    for shard in tqdm(
        shards[workers.rank :: workers.count], "encoding pictures", unit="shard", leave=False
    ):
        absent = [shard[place] for place in store.missing([keys[number] for number in shard])]
        if absent:
            rows = zip(absent, examples(dataset.select(absent), "encoding pictures"), strict=True)
            moments = [encoder.encode(number, example) for number, example in rows]
            store.write([keys[number] for number in absent], moments)
    workers.wait()
    store.refresh()
    return store.read(keys)


def _report(store: Store, keys: list[bytes]) -> None:
    absent = len(store.missing(keys))
    print(f"latents: {len(keys) - absent} of {len(keys)} pictures are in the cache")
    if store.damaged:
        print(f"damaged, and encoded anew where needed: {named(store.damaged)}")


def _alpha_weights(dataset: Dataset, config: DataConfig, seed: int, downscaling: int) -> Tensor:
    """Loss weights (N, V, 1, h, w) of all variants from the alpha channels, at the latents' size.

    Raises `DataError` naming pictures of which only transparent parts are seen.
    """
    shape = config.size[1] // downscaling, config.size[0] // downscaling
    weights, even, hidden = [], [], []
    for number, example in enumerate(examples(dataset, "reading alpha channels")):
        _, alpha = open_with_alpha(example)
        frames = _frames(alpha, config, seed, number)
        levels = torch.stack([to_levels(alpha, seen, shape) for seen in frames])
        weights.append(_with_mirrored(list(loss_weights(levels)), config))
        if not levels.any():
            hidden.append(example.name)
        elif levels.min() == levels.max():
            even.append(example.name)
    if hidden:
        raise DataError(
            f"use_alpha_weights: all that the crop shows is transparent in {named(hidden)}. Crop "
            "them yourself, set resize_mode to stretch, or remove them."
        )
    if even:
        print(f"weighted evenly, since their alpha is constant or missing: {named(even)}")
    return torch.stack(weights)


def _with_mirrored(crops: list[Tensor], config: DataConfig) -> Tensor:
    """The variants (V, ...): the crops and, with `random_flip`, their mirror images."""
    return torch.stack(crops + [crop.flip(-1) for crop in crops] if config.random_flip else crops)


def _frames(picture: Image.Image, config: DataConfig, seed: int, number: int) -> list[Frame]:
    """What is seen of one picture in each of its crops."""
    places = _places(config, seed, number)
    return [frame(picture, config.size, place, config.resize_mode) for place in places]


def _places(config: DataConfig, seed: int, number: int) -> list[tuple[float, float]]:
    """Where the crops of one picture lie: the centre, or random places."""
    if not config.random_crop:
        return [(0.5, 0.5)]
    draw = rng.python_random(seed, "crop", number)
    return [(draw.random(), draw.random()) for _ in range(config.crops_per_image)]
