"""Batches as a pure function of the step.

A slot is a place in the global batch of a step, which is dealt out to processes and micro-batches.
Which of them draws which slot changes nothing about what is drawn for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from hn import rng
from hn.data.cache.contexts import Contexts
from hn.data.cache.index import Index
from hn.data.cache.latents import Latents
from hn.data.order import Order
from hn.data.words.prompts import Prompts
from hn.diffusion.conditions.condition import Condition


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this process; all of its pictures have one size."""

    step: int
    slots: list[int]
    pictures: list[int]
    prompts: list[str]
    latents: Tensor  # (B, C, h, w)
    condition: Condition
    loss_weights: Tensor | None = None  # (B, 1, h, w)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the global batch is dealt out."""

    batch_size: int
    accumulation: int
    rank: int = 0
    world_size: int = 1

    @property
    def global_batch(self) -> int:
        """Pictures per step, over all processes and micro-batches."""
        return self.batch_size * self.accumulation * self.world_size

    def number(self, step: int, micro_batch: int) -> int:
        """The number of a micro-batch of this process, counted over all processes and steps."""
        return (step * self.accumulation + micro_batch) * self.world_size + self.rank

    def slots(self, micro_batch: int) -> list[int]:
        """The slots of this process's micro-batch."""
        start = self.number(0, micro_batch) * self.batch_size
        return list(range(start, start + self.batch_size))


class Batches:
    """`at(step)` gives this process's micro-batches of a step, whatever was asked for before."""

    def __init__(
        self, latents: Latents, prompts: Prompts, contexts: Contexts, layout: Layout, seed: int
    ) -> None:
        index = latents.index
        self.layout = layout
        self._latents = latents
        self._prompts = prompts
        self._contexts = contexts
        self._seed = seed
        self._order = Order.of(index.sizes, index.numbers("repeats"), layout.batch_size, seed)

    def at(self, step: int) -> Iterator[Batch]:
        """The micro-batches of optimizer step `step` (counted from 0)."""
        for micro_batch in range(self.layout.accumulation):
            pictures = self._order.batch(self.layout.number(step, micro_batch))
            yield self._batch(step, self.layout.slots(micro_batch), pictures)

    @property
    def pictures(self) -> int:
        """How many pictures an epoch has, each as often as it is repeated."""
        return int(self._latents.index.numbers("repeats").sum(dtype=int))

    @property
    def index(self) -> Index:
        """What is known of them."""
        return self._latents.index

    @property
    def digest(self) -> str:
        """What the pictures are, for resuming with the same."""
        return self._latents.index.about.digest

    def names(self, batch: Batch) -> list[str]:
        """What the pictures of a batch are called."""
        names = self.index.table.column("name")
        return [names[picture].as_py() for picture in batch.pictures]

    def _batch(self, step: int, slots: list[int], pictures: list[int]) -> Batch:
        prompts = [
            self._prompts.draw(picture, step, slot)
            for picture, slot in zip(pictures, slots, strict=True)
        ]
        variants = [self._variant(step, slot) for slot in slots]
        batch = Batch(
            step=step,
            slots=slots,
            pictures=pictures,
            prompts=prompts,
            latents=self._latents.samples(pictures, variants, step, slots),
            condition=self._condition(pictures, variants, prompts, step, slots),
            loss_weights=self._latents.weights(pictures, variants),
        )
        self._latents.index.let_go()
        return batch

    def _condition(
        self,
        pictures: list[int],
        variants: list[int],
        prompts: list[str],
        step: int,
        slots: list[int],
    ) -> Condition:
        """What the UNet is told of them."""
        views = self._latents.views(pictures, variants) if self._contexts.sized else None
        condition = self._contexts.stack(prompts, views)
        if not self._latents.inpainting:
            return condition
        return replace(condition, canvas=self._latents.canvases(pictures, variants, step, slots))

    def _variant(self, step: int, slot: int) -> int:
        if self._latents.variants == 1:
            return 0
        return rng.python_random(self._seed, "variant", step, slot).randrange(
            self._latents.variants
        )
