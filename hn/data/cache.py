"""What is encoded once and read at every step: latents of pictures and contexts of prompts, in
memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from hn import rng
from hn.diffusion.base_model import BaseModel, Moments
from hn.diffusion.text_encoder import stack_contexts

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
