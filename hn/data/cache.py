"""What is encoded once and read at every step: latents of pictures and contexts of prompts, in
memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hn import rng
from hn.config import DataConfig
from hn.data.decoding import open_picture, open_with_alpha
from hn.data.framing import Frame, frame, loss_weights, to_levels, to_tensor
from hn.data.images import examples, named
from hn.diffusion.base_model import BaseModel, Moments
from hn.diffusion.text_encoder import stack_contexts
from hn.errors import DataError, NumericsError

ENCODED_AT_ONCE = 32  # prompts
KEPT = 4096  # contexts: 1 GB of one chunk for SD 1; more only come up where tags are shuffled


@dataclass(frozen=True)
class Latents:
    """Moments (N, V, C, h, w) of N pictures in V variants: crops and their mirror images.

    `loss_weights` (N, V, 1, h, w) say how much each place counts; None: all the same.
    """

    moments: Moments
    sampling: str
    seed: int
    loss_weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.moments.mean)

    @property
    def variants(self) -> int:
        """How many variants of each picture there are."""
        return self.moments.mean.shape[1]

    def sample(self, picture: int, variant: int, step: int, slot: int) -> Tensor:
        """Latents (C, h, w): the mean, the sample of the whole run, or of this step and slot."""
        mean, std = self.moments.mean[picture, variant], self.moments.std[picture, variant]
        if self.sampling == "deterministic":
            return mean
        position = (picture, variant) if self.sampling == "once" else (picture, variant, step, slot)
        return mean + std * torch.randn(
            mean.shape, generator=rng.generator(self.seed, "latent", *position)
        )

    def weights(self, pictures: list[int], variants: list[int]) -> Tensor | None:
        """Loss weights (B, 1, h, w) of these variants of pictures, if there are any."""
        return None if self.loss_weights is None else self.loss_weights[pictures, variants]


def encode_latents(dataset: Dataset, base: BaseModel, config: DataConfig, seed: int) -> Latents:
    """Encode every picture in all its variants, with a progress bar.

    Raises `NumericsError` naming a picture whose latents are not finite, `DataError` one of which
    only transparent parts would be learnt.
    """
    weights = None
    if config.use_alpha_weights:
        weights = _alpha_weights(dataset, config, seed, base.downscaling)
    means, stds = [], []
    for number, example in enumerate(examples(dataset, "encoding pictures")):
        picture = open_with_alpha(example)[0] if config.use_alpha_weights else open_picture(example)
        crops = [to_tensor(picture, seen) for seen in _frames(picture, config, seed, number)]
        moments = base.encode_images(_with_mirrored(crops, config))
        if not (moments.mean.isfinite().all() and moments.std.isfinite().all()):
            raise NumericsError(f"{example.name}: the autoencoder's latents are not finite numbers")
        means.append(moments.mean)
        stds.append(moments.std)
    moments = Moments(torch.stack(means), torch.stack(stds))
    return Latents(moments, config.latent_sampling, seed, weights)


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


class Contexts:
    """Text contexts by prompt; each is encoded once, at the start where it is known."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._known: dict[str, Tensor] = {}

    def encode(self, prompts: Iterable[str]) -> None:
        """Encode those that are not known yet; with a progress bar where there are many."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        starts = range(0, len(new), ENCODED_AT_ONCE)
        for start in tqdm(
            starts, desc="encoding prompts", unit="batch", leave=False, disable=len(starts) < 4
        ):
            chunk = new[start : start + ENCODED_AT_ONCE]
            encoded = [context.cpu() for context in self._base.encode_prompts(chunk)]
            self._known |= zip(chunk, encoded, strict=True)

    def stack(self, prompts: list[str]) -> Tensor:
        """Contexts (B, T, D) of the prompts, on the CPU; beyond `KEPT` the oldest are forgotten."""
        self.encode(prompts)
        contexts = stack_contexts([self._known[prompt] for prompt in prompts])
        for oldest in list(self._known)[: max(0, len(self._known) - KEPT)]:
            del self._known[oldest]
        return contexts
