"""What the UNet is told of a picture beside its noisy latents and the timestep."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from hn.diffusion.text_encoder import stack_contexts
from hn.diffusion.transfer import send


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Of B pictures: the `context` (B, T, D) that attention reads.

    Stable Diffusion XL is told more, by way of the embedding of the timestep: its `pooled` text
    (B, P), and `time_ids` (B, 6): height and width of the picture, top and left of what was cut out
    of it, height and width of that, all in pixels (arXiv 2307.01952, 2.2). Of its refiner (B, 5):
    the picture's size, the corner, and a score of its beauty.

    An inpainting model reads a `canvas` (B, 1 + C, h, w) beside the noisy latents, see
    `hn.diffusion.inpainting`.
    """

    context: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    canvas: Tensor | None = None

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One of many; shorter contexts repeat their last vector, as `stack_contexts` does."""
        contexts = [context for part in parts for context in part.context]
        rest = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in parts[0]._tensors()
            if name != "context"
        }
        return cls(context=stack_contexts(contexts), **rest)

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, rows: slice) -> Self:
        return self._changed(lambda tensor: tensor[rows])

    def repeat(self, times: int) -> Self:
        """Each picture's so often, one after the other."""
        return self._changed(lambda tensor: tensor.repeat_interleave(times, 0))

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self._changed(lambda tensor: tensor.to(device))

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def arguments(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """What diffusers' UNet takes, on its device and in its dtype; the host does not wait."""
        arguments: dict[str, Any] = {"encoder_hidden_states": send(self.context, device, dtype)}
        if self.pooled is not None and self.time_ids is not None:
            arguments["added_cond_kwargs"] = {
                "text_embeds": send(self.pooled, device, dtype),
                "time_ids": send(self.time_ids, device, dtype),
            }
        return arguments

    def beside(self, noisy: Tensor) -> Tensor:
        """What the UNet reads of pictures: noisy latents (B, C, h, w), and the canvas if it has one
        (B, 1 + 2 C, h, w).
        """
        if self.canvas is None:
            return noisy
        return torch.cat([noisy, send(self.canvas, noisy.device, noisy.dtype)], dim=1)

    def _changed(self, change: Any) -> Self:
        return type(self)(**{name: change(tensor) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}
