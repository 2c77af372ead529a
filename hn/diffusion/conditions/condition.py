"""What the UNet is told of a picture beside its noisy latents and the timestep."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from hn.diffusion.transfer import send


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Of B pictures: the `context` (B, T, D) that attention reads.

    Stable Diffusion XL is told more, by way of the embedding of the timestep: its `pooled` text
    (B, P), and `time_ids` (B, 6), of its refiner (B, 5), which `views` makes. An inpainting model
    reads a `canvas` (B, 1 + C, h, w) beside the noisy latents, which `inpainting` makes.
    """

    context: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    canvas: Tensor | None = None

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One of many; shorter contexts repeat their last vector, as `stack_contexts` does."""
        if len(parts) == 1:
            return parts[0]
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

    def of(self, time_ids: Tensor) -> Self:
        """The same texts, of pictures that these numbers tell of."""
        return replace(self, time_ids=time_ids)

    def zeroed(self) -> Self:
        """What says nothing, and is as large."""
        return self._changed(torch.zeros_like)

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
                "time_ids": send(self.time_ids, device),  # whose embedding is computed in float32
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


def stack_contexts(contexts: Sequence[Tensor]) -> Tensor:
    """Contexts (T_i, D) as one batch (B, T, D), T the longest; others repeat their last vector.

    The web UI's rule. What a prompt's attention reads therefore depends on how long the longest
    prompt beside it is.
    """
    length = max(len(context) for context in contexts)
    return torch.stack(
        [
            context
            if len(context) == length
            else torch.cat([context, context[-1:].expand(length - len(context), -1)])
            for context in contexts
        ]
    )
