"""Batches of a stream: pictures are decoded, framed and encoded when their turn comes."""

import weakref
from collections.abc import Generator, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from hn import rng
from hn.config import DataConfig
from hn.data.batches import Batch
from hn.data.streaming.chunks import Decoder, Progress, Ready
from hn.data.streaming.prefetch import ahead
from hn.data.streaming.samples import Sample
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions import inpainting
from hn.diffusion.conditions.condition import Condition
from hn.errors import NumericsError

DECODED = 4  # micro-batches that wait


class StreamedBatches:
    """`at(step)` gives this process's micro-batches of a step; steps come one after the other.

    Reading and decoding go on in threads while the model is busy.
    """

    pictures = None  # nobody knows how many there are

    def __init__(
        self, decoder: Decoder, base: BaseModel, config: DataConfig, seed: int, digest: str
    ) -> None:
        self.digest = digest
        self.layout = decoder.layout
        self._decoder = decoder
        self._base = base
        self._sampling = config.latent_sampling
        self._seed = seed
        self._progress = Progress()
        self._next_step: int | None = None
        self._ready: Generator[Ready, None, None] | None = None
        self._names: dict[int, str] = {}  # of the newest pictures, by their content

    def at(self, step: int) -> Iterator[Batch]:
        """The micro-batches of optimizer step `step`, that after the last one."""
        assert self._next_step in (None, step), f"step {step} does not follow: {self._next_step}"
        if self._ready is None:
            self._ready = ahead(self._decoder.batches(step, self._progress), DECODED)
            weakref.finalize(self, self._ready.close)
        while len(self._names) > 2 * self.layout.accumulation * self.layout.batch_size:
            del self._names[next(iter(self._names))]
        for _ in range(self.layout.accumulation):
            ready = next(self._ready)
            self._progress = ready.progress
            yield self._encoded(ready)
        self._next_step = step + 1

    def state(self) -> dict[str, Any]:
        """Where this process is, in plain values: for `restore`, with the same settings."""
        return {"next_step": self._next_step, **asdict(self._progress)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there: before the first step, or back from a later one."""
        if self._ready is not None:
            self._ready.close()
            self._ready = None
        self._next_step = state["next_step"]
        self._progress = Progress.of(state)

    def counts(self) -> dict[str, int]:
        """What became of this process's rows so far."""
        return {
            f"pictures_{name}": number for name, number in asdict(self._progress.counts).items()
        }

    def names(self, batch: Batch) -> list[str]:
        """What the pictures of a batch of this step or the last one are called."""
        return [self._names.get(content, "?") for content in batch.pictures]

    def _encoded(self, ready: Ready) -> Batch:
        """The batch; computed from it alone, so that a resumed run finds the same bits."""
        moments = self._base.encode_images(torch.stack([it.pixels for it in ready.samples]))
        if not (moments.mean.isfinite().all() and moments.std.isfinite().all()):
            names = ", ".join(it.name for it in ready.samples)
            raise NumericsError(
                f"the autoencoder's latents of one of {names} are not finite numbers"
            )
        latents = moments.mean  # (B, C, h, w)
        if self._sampling != "deterministic":
            noise = [
                torch.randn(latents.shape[1:], generator=self._generator(sample, ready.step, slot))
                for sample, slot in zip(ready.samples, ready.slots, strict=True)
            ]
            latents = latents + moments.std * torch.stack(noise)
        self._names |= {it.content: it.name for it in ready.samples}
        texts = Condition.join(self._base.encode_prompts(ready.prompts))
        weights = [it.weights for it in ready.samples if it.weights is not None]
        told = self._base.tell(texts, [it.view for it in ready.samples])
        return Batch(
            step=ready.step,
            slots=ready.slots,
            pictures=[it.content for it in ready.samples],
            prompts=ready.prompts,
            latents=latents,
            condition=replace(told.to("cpu"), canvas=self._canvas(ready.samples)),
            loss_weights=torch.stack(weights) if weights else None,
        )

    def _canvas(self, samples: list[Sample]) -> Tensor | None:
        """What an inpainting model reads beside them (B, 1 + C, h, w)."""
        holes = [it.hole for it in samples if it.hole is not None]
        if not holes:
            return None
        pixels = torch.stack([it.pixels for it in samples])
        return inpainting.encode(self._base, pixels, torch.stack(holes))

    def _generator(self, sample: Sample, step: int, slot: int) -> torch.Generator:
        """What a picture's sample is drawn with: for once, of what the picture is."""
        once = self._sampling == "once"
        position = (sample.content, sample.mirrored) if once else (step, slot)
        return rng.generator(self._seed, "latent", *position)
