"""What training reads of the pictures of a cache, from the disk's page cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hn import rng
from hn.data.cache.index import Index
from hn.data.cache.store import Store

HELD = 2048  # latents in memory, of the first pictures that come up: 128 MiB of 512 x 512
Position = tuple[int, ...]  # picture and variant; where it matters step and slot, too


class Latents:
    """Latents and loss weights of the pictures of an index.

    `sampling`: "deterministic" takes the mean of a variant's moments, "once" one sample for the
    whole run, "random" a sample of each step and slot. What never changes is read once.
    """

    def __init__(self, index: Index, store: Store, sampling: str, seed: int) -> None:
        self.index = index
        self._store = store
        self._sampling = sampling
        self._seed = seed
        self._held: dict[Position, Tensor] = {}
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

    def samples(
        self, pictures: Sequence[int], variants: Sequence[int], step: int, slots: Sequence[int]
    ) -> Tensor:
        """Latents (B, C, h, w) for slots of a step, of pictures of one size."""
        random = self._sampling == "random"
        positions: list[Position] = [
            (picture, variant, step, slot) if random else (picture, variant)
            for picture, variant, slot in zip(pictures, variants, slots, strict=True)
        ]
        found = {it: self._held[it] for it in positions if it in self._held}
        if new := [it for it in dict.fromkeys(positions) if it not in found]:
            found |= self._drawn(new)
            if not random and len(self._held) < HELD:
                self._held |= found
        return torch.stack([found[it] for it in positions])

    def _drawn(self, positions: Sequence[Position]) -> dict[Position, Tensor]:
        """Latents (C, h, w) of each."""
        keys = [self.index.keys(picture)[variant] for picture, variant, *_ in positions]
        moments = self._store.stack(keys).float()  # (B, 2, C, h, w)
        return {it: self._sample(one, it) for it, one in zip(positions, moments, strict=True)}

    def _sample(self, moments: Tensor, position: Position) -> Tensor:
        """Latents (C, h, w) of moments (2, C, h, w)."""
        mean, std = moments
        if self._sampling == "deterministic":
            return mean.clone()  # not to hold the deviations, too
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
