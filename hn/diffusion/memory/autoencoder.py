"""What autoencoder and text encoders take while they do theirs, rehearsed on meta tensors."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import AutoencoderKL

from hn.benchmark.memory import PeakMemory


@dataclass(frozen=True)
class Encoders:
    """Bytes of their weights, and what the autoencoder holds at once while it encodes a batch
    of pictures, and while it decodes one.
    """

    autoencoder: int
    text_encoder: int
    encoding: int
    decoding: int


@lru_cache
def rehearse_encoders(
    vae: str, words: int, dtype: torch.dtype, size: tuple[int, int], batch: int
) -> Encoders:
    """From the autoencoder's configuration as JSON and the number of weights that read words, for
    pictures of a size (width, height); the autoencoder is in float32, the others in `dtype`.
    """
    width, height = size
    with torch.device("meta"), torch.no_grad():
        model: Any = AutoencoderKL.from_config(json.loads(vae))
        with PeakMemory() as encoding:
            latents = model.encode(torch.empty(batch, 3, height, width)).latent_dist.mean
        with PeakMemory() as decoding:
            model.decode(torch.empty_like(latents[:1]))
    pictures = sum(p.nbytes for p in model.parameters())
    return Encoders(pictures, words * dtype.itemsize, encoding.peak, decoding.peak)
