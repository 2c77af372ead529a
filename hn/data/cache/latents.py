"""What training reads of the pictures of a cache, at every step from the disk's page cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hn import rng
from hn.data.cache.index import Index
from hn.data.cache.store import Store
from hn.diffusion.views import View


class Latents:
    """Latents and loss weights of the pictures of an index.

    `sampling`: "deterministic" takes the mean of a variant's moments, "once" one sample for the
    whole run, "random" a sample of each step and slot.
    """

    def __init__(self, index: Index, store: Store, sampling: str, seed: int) -> None:
        self.index = index
        self._store = store
        self._sampling = sampling
        self._seed = seed
        self._loss_weights = index.numbers("loss_weight")
        masked = index.table.column("weights").null_count < len(index)
        self._weighted = masked or bool((self._loss_weights != 1).any())

    def __len__(self) -> int:
        return len(self.index)

    @property
    def variants(self) -> int:
        """How many variants of each picture there are: crops, then their mirror images."""
        return self.index.about.variants

    def moments(self, picture: int, variant: int = 0) -> Tensor:
        """Mean and standard deviation (2, C, h, w), float32."""
        return self._store.read([self.index.keys(picture)[variant]])[0].float()

    def views(self, pictures: Sequence[int], variants: Sequence[int]) -> list[View]:
        """What these variants show of their pictures."""
        return list(map(self.index.view, pictures, variants))

    def samples(
        self, pictures: Sequence[int], variants: Sequence[int], step: int, slots: Sequence[int]
    ) -> Tensor:
        """Latents (B, C, h, w) for slots of a step, of pictures of one size."""
        chosen = zip(pictures, variants, strict=True)
        keys = [self.index.keys(picture)[variant] for picture, variant in chosen]
        moments = self._store.stack(keys).float()  # (B, 2, C, h, w)
        drawn = zip(moments, pictures, variants, slots, strict=True)
        return torch.stack(
            [self._sample(it, picture, variant, step, slot) for it, picture, variant, slot in drawn]
        )

    def _sample(self, moments: Tensor, picture: int, variant: int, step: int, slot: int) -> Tensor:
        """Latents (C, h, w) of moments (2, C, h, w)."""
        mean, std = moments
        if self._sampling == "deterministic":
            return mean
        position = (
            (picture, variant) if self._sampling == "once" else (picture, variant, step, slot)
        )
        noise = torch.randn(mean.shape, generator=rng.generator(self._seed, "latent", *position))
        return mean + std * noise

    def weights(self, pictures: Sequence[int], variants: Sequence[int]) -> Tensor | None:
        """How much each place of these variants counts (B, 1, h, w); None: all the same."""
        if not self._weighted:
            return None
        return torch.stack(list(map(self._weights, pictures, variants)))

    def _weights(self, picture: int, variant: int) -> Tensor:
        """Loss weights (1, h, w): of each place, times that of the picture's folder."""
        own, key = float(self._loss_weights[picture]), self.index.weights(picture)
        if key is None:
            _, _, height, width = self.moments(picture, variant).shape
            return torch.full((1, height, width), own)
        crops = self._store.read([key])[0]  # (crops, 1, h, w)
        weights = crops[variant % len(crops)]
        return own * (weights.flip(-1) if variant >= len(crops) else weights)
