"""What stands in each attention layer: it reads the context through a stack of hypernetworks."""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from hn.diffusion.attending.kernels import Attend
from hn.diffusion.attending.projections import Contexts, Projected
from hn.diffusion.attending.strength import Choices, resolve
from hn.network.module import Stack, transform_context


@dataclass(frozen=True)
class Reading:
    """What the layers read in one UNet forward: through which stack at each place of the UNet, and
    the text transformed for it (`contexts`), unless each layer is to do that itself. Of the layers
    in `projected`, keys and values are there, too. Where the UNet computes without autocast, the
    hypernetworks have it in this `precision`.
    """

    stacks: dict[str, Stack]
    contexts: Contexts | None
    projected: Projected = field(default_factory=dict)
    precision: torch.dtype | None = None

    def transform(self, context: Tensor, place: str) -> tuple[Tensor, Tensor]:
        """What `to_k` and `to_v` at a place of the UNet read instead of a context (B, T, D)."""
        if self.precision is None:
            return transform_context(context, self.stacks[place])
        with torch.autocast(context.device.type, self.precision):
            return transform_context(context, self.stacks[place])


class HypernetworkAttention:
    """An attention processor that reads the context through a stack of hypernetworks.

    `name` is that of the layer in the UNet, `place` where its reading is found. diffusers passes on
    only the keyword arguments that `__call__` names, hence `reading`; without one (a layer that is
    called alone) it is that of the stack at the end of denoising.
    """

    def __init__(self, stack: Choices, attend: Attend, name: str, place: str) -> None:
        self.stack = stack
        self.attend = attend
        self.name = name
        self.place = place

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reading: Reading | None = None,
    ) -> Tensor:
        """Attention of `hidden_states` (B, N, C) to a context (B, T, D), or to themselves."""
        keys, values = self._keys_and_values(attn, hidden_states, encoder_hidden_states, reading)
        query = _split_heads(attn.to_q(hidden_states), attn.heads)  # (B, H, N, C/H)
        key = _split_heads(keys, attn.heads)  # (B, H, T, C/H)
        value = _split_heads(values, attn.heads)
        mask = _mask_for_heads(attn, attention_mask, key)
        attended = self.attend(attn, query, key, value, mask)
        merged = attended.transpose(1, 2).flatten(2).to(query.dtype)  # (B, N, C)
        return attn.to_out[1](attn.to_out[0](merged))

    def _keys_and_values(
        self, attn: Any, hidden_states: Tensor, text: Tensor | None, reading: Reading | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (B, T, C), as they are handed down or computed here."""
        if text is not None and reading is not None and self.name in reading.projected:
            return reading.projected[self.name]
        context_k, context_v = self._contexts(hidden_states, text, reading)
        return attn.to_k(context_k), attn.to_v(context_v)

    def _contexts(
        self, hidden_states: Tensor, text: Tensor | None, reading: Reading | None
    ) -> tuple[Tensor, Tensor]:
        """What `to_k` and `to_v` read."""
        if reading is None:
            end = hidden_states.new_ones((), dtype=torch.float32)
            reading = Reading(resolve(self.stack, end, [self.place]), None)
        if text is not None and reading.contexts is not None:
            return reading.contexts[self.place]
        context = hidden_states if text is None else text
        return reading.transform(context, self.place)


class DirectAttention(Attention):
    """Diffusers' attention layer without its look at the signature of our processor in every call
    (15 us, in each of 32 layers). What is attached makes a layer one of these, and back.
    """

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """As `Attention.forward`, which still says what it ignores."""
        known = cross_attention_kwargs.keys() <= {"reading"}
        if not known or not isinstance(self.processor, HypernetworkAttention):
            return super().forward(
                hidden_states, encoder_hidden_states, attention_mask, **cross_attention_kwargs
            )
        return self.processor(
            self,
            hidden_states,
            encoder_hidden_states,
            attention_mask,
            reading=cross_attention_kwargs.get("reading"),
        )


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _mask_for_heads(attn: Any, mask: Tensor | None, key: Tensor) -> Tensor | None:
    """Diffusers' additive mask, repeated for each head: (B, H, 1, T)."""
    if mask is None:
        return None
    batch, heads, tokens, _ = key.shape
    prepared = attn.prepare_attention_mask(mask, tokens, batch)
    return prepared.view(batch, heads, -1, prepared.shape[-1])
