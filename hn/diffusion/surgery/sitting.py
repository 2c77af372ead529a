"""Prompts drawn, and more of them looked at, for the sake of what attention reads meanwhile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Generic

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hn import demo
from hn.demo.pictures import caption, sample_scene
from hn.diffusion import objective
from hn.diffusion.attention import attach
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.inpainting import blanks
from hn.diffusion.conditions.views import View
from hn.diffusion.denoiser import predict
from hn.diffusion.pipeline import Painter
from hn.diffusion.surgery.noted import Kept
from hn.diffusion.surgery.options import FEWEST, ProbeOptions
from hn.diffusion.surgery.probing import PROMPTS, WORDS, Probe
from hn.network.module import Hypernetwork

DRAWN = 16  # prompts; others are looked at once
LOOKS = 256  # built-in prompts to look at
AT_ONCE = 8
SEEDS = (0, 1000)  # of what is seen, and of what is kept apart


@dataclass(frozen=True)
class Seen(Generic[Kept]):
    """What the layers read of most prompts, and of those kept apart, by their names."""

    most: Mapping[str, Kept]
    others: Mapping[str, Kept]


class Sitting:
    """A base model and its prompts; every fourth is kept apart, to measure on.

    Drawing shows what self-attention reads, but few texts for all its time. So more texts are
    looked at: one forward each, of drawn latents with noise on them.
    """

    def __init__(self, base: BaseModel, options: ProbeOptions) -> None:
        self.base = base
        self._options = options
        prompts = list(options.prompts) or default_prompts(options.base)
        drawn, self._texts = _divided(prompts[:DRAWN]), _divided(prompts[DRAWN:])
        self._painters = [self._painter(*it) for it in zip(drawn, SEEDS, strict=True)]

    def probe(
        self,
        stack: Sequence[tuple[Hypernetwork, float]],
        make: Callable[[int, torch.device], Kept],
    ) -> Seen[Kept]:
        """Draw and look through a stack, where its substitute will do its work, and note it all."""
        for net, _ in stack:
            net.to(self.base.device)
        probe, found = Probe(self.base.unet, stack, make), []
        with attach(self.base.unet, stack), probe.noting():
            for painter, texts, seed in zip(self._painters, self._texts, SEEDS, strict=True):
                latents = painter.latents()
                if texts:
                    self._look(latents, self._conditions(texts), seed)
                found.append(probe.taken())
        return Seen(*found)

    def draw(self) -> list[Image.Image]:
        """The prompts kept apart, with what is attached or added to the UNet now."""
        return self._painters[1].draw()

    @torch.no_grad()
    def _look(self, latents: Tensor, texts: Condition, seed: int) -> None:
        """One forward of each text, with any of the latents (P, C, h, w)."""
        base, generator = self.base, torch.Generator().manual_seed(seed)
        texts = replace(texts, canvas=blanks(base, latents[:1].expand(len(texts), -1, -1, -1)))
        height, width = (side * base.downscaling for side in latents.shape[-2:])
        size = width, height
        for start in tqdm(range(0, len(texts), AT_ONCE), "looking", leave=False):
            condition = texts[start : start + AT_ONCE]
            condition = base.tell(condition, [View.whole(size)] * len(condition))
            rows = torch.randint(len(latents), (len(condition),), generator=generator)
            timesteps = torch.randint(
                len(base.alphas_cumprod), (len(condition),), generator=generator
            )
            clean = latents[rows.to(latents.device)].float().cpu()
            noise = torch.randn(clean.shape, generator=generator)
            scales = objective.scales_at(timesteps, base.alphas_cumprod)
            noisy = objective.add_noise(clean, noise, scales)
            device = base.device
            predict(base.unet, noisy.to(device), timesteps.to(device), condition)

    def _conditions(self, prompts: Sequence[str]) -> Condition:
        """Of these prompts."""
        starts = range(0, len(prompts), AT_ONCE)
        found = [
            condition
            for start in tqdm(starts, "encoding prompts", leave=False, delay=1)
            for condition in self.base.encode_prompts([*prompts[start : start + AT_ONCE]])
        ]
        return Condition.join(found)

    def _painter(self, prompts: Sequence[str], seed: int) -> Painter:
        options, base = self._options, self.base
        conditions = self._conditions([*prompts, ""])
        return Painter(
            base,
            conditions[:-1],
            base.negative(conditions[-1:], ""),
            size=options.size or base.own_size,
            steps=options.steps,
            guidance_scale=options.guidance_scale,
            seed=seed,
            progress=True,
        )


def _divided(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Most of them, and every fourth."""
    most = [it for place, it in enumerate(prompts, 1) if place % FEWEST]
    return most, list(prompts[FEWEST - 1 :: FEWEST])


def default_prompts(base: str) -> list[str]:
    """Those of the embedded demo's small language, or some of everyday's."""
    rng = Random(0)
    if base == demo.NAME:
        return [caption(sample_scene(rng)) for _ in range(DRAWN + LOOKS)]
    return [*PROMPTS, *(" ".join(map(rng.choice, WORDS)) for _ in range(LOOKS))]
