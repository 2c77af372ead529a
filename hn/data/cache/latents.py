"""What training reads of the pictures of a cache, from the disk's page cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hn import rng
from hn.data.cache.index import Index
from hn.data.cache.store import Store
from hn.diffusion.conditions.views import View
from hn.errors import DataError

HELD = 2**26  # bytes of latents in memory, of the first that come up: 1,000 of 512 x 512
Position = tuple[int, ...]  # picture and variant; where it matters step and slot, too


class Latents:
    """Latents and loss weights of the pictures of an index.

    `sampling`: "deterministic" takes the mean of a variant's moments, "once" one sample for the
    whole run, "random" a sample of each step and slot. What never changes is read once. For an
    inpainting model they have canvases. Raises `DataError` if it is one, and the cache was made for
    another kind.
    """

    def __init__(
        self, index: Index, store: Store, sampling: str, seed: int, *, inpainting: bool = False
    ) -> None:
        self.index = index
        self._store = store
        self._sampling = sampling
        self._seed = seed
        self.inpainting = inpainting
        if inpainting and len(index) and not index.canvases(0, 0):
            raise DataError(
                f"the cache {store.folder.parent} was not made for an inpainting model: it has no "
                "masks and no pictures without what they hide. Make it with the base model that is "
                "trained on"
            )
        self._held: dict[Position, Tensor] = {}
        self._room = HELD
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
        random = self._sampling == "random"
        positions: list[Position] = [
            (picture, variant, step, slot) if random else (picture, variant)
            for picture, variant, slot in zip(pictures, variants, slots, strict=True)
        ]
        found = {it: self._held[it] for it in positions if it in self._held}
        if new := [it for it in dict.fromkeys(positions) if it not in found]:
            drawn = self._drawn(new)
            found |= drawn
            if not random and self._room > 0:
                self._held |= drawn
                self._room -= sum(it.nbytes for it in drawn.values())
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

    def canvases(
        self, pictures: Sequence[int], variants: Sequence[int], step: int, slots: Sequence[int]
    ) -> Tensor:
        """What an inpainting model reads beside them (B, 1 + C, h, w): of each one of its own,
        drawn anew for every step and slot.
        """
        keys = []
        for picture, variant, slot in zip(pictures, variants, slots, strict=True):
            own = self.index.canvases(picture, variant)
            keys.append(own[rng.python_random(self._seed, "mask", step, slot).randrange(len(own))])
        return self._store.stack(keys).float()

    def first_canvas(self, picture: int) -> Tensor:
        """That (1 + C, h, w) of the first variant with its first hole."""
        return self._store.read(self.index.canvases(picture, 0)[:1])[0].float()

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
