"""How attention is computed once queries, keys and values are there: as the processor that was
replaced did it, or by a kernel of the user's choice.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor
from torch.nn import functional as F

from hn.errors import OptionError

Kernel = Literal["sdpa", "xformers"]
Attend = Callable[[Any, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""From a layer, its queries (B, H, N, C/H), keys and values (B, H, T, C/H) and the mask to be added
(B, H, 1, T) or None, to what it reads (B, H, N, C/H)."""
REPLACEABLE = (AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)


def choose_kernel(processor: Any, wanted: Kernel | None = None) -> Attend:
    """The kernel that is wanted, or else that of the diffusers processor to be replaced.

    Raises `OptionError` if it is xformers and that is missing.
    """
    if wanted == "sdpa":
        return sdpa
    if wanted == "xformers":
        return _xformers(None)
    match processor:
        case XFormersAttnProcessor():
            return _xformers(processor.attention_op)
        case SlicedAttnProcessor():
            return Slices(processor.slice_size)
        case AttnProcessor():
            return Slices(None)
    return sdpa


def _upcasting(attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]) -> Attend:
    """Attend in float32 where the model asks for it (SD 2.1 overflows in half precision)."""

    def upcast(attn: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if not attn.upcast_attention:
            return attend(query, key, value, mask)
        with torch.autocast(query.device.type, enabled=False):
            wide_mask = None if mask is None else mask.float()
            return attend(query.float(), key.float(), value.float(), wide_mask)

    return upcast


@_upcasting
def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend by torch's fused kernels."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class Slices:
    """Attend step by step, so many heads of the batch at once: slower, in less memory.

    `size` is that of diffusers' `enable_attention_slicing`; None takes all at once.
    """

    def __init__(self, size: int | None) -> None:
        self.size = size

    def __call__(
        self, attn: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """As an `Attend`."""
        flat = [x.flatten(0, 1) for x in (query, key, value)]  # (B * H, N or T, C/H)
        masks = None if mask is None else mask.flatten(0, 1)
        size = self.size or len(flat[0])
        parts = []
        for start in range(0, len(flat[0]), size):
            here = slice(start, start + size)
            queries, keys, values = (x[here] for x in flat)
            mask_here = None if masks is None else masks[here]
            parts.append(attn.get_attention_scores(queries, keys, mask_here).bmm(values))
        return torch.cat(parts).view_as(query)


def _xformers(operator: Any) -> Attend:
    try:
        from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]  # an extra
    except ImportError as error:
        raise OptionError(
            "attention_kernel 'xformers' needs the package xformers, which is not installed: pip "
            "install -e '.[xformers]', or use attention_kernel 'sdpa'"
        ) from error

    @_upcasting
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        bias = None if mask is None else mask.expand(-1, -1, query.shape[2], -1)
        # xformers wants (B, N, H, C/H)
        heads_last = (x.transpose(1, 2) for x in (query, key, value))
        read = memory_efficient_attention(*heads_last, attn_bias=bias, op=operator)
        return read.transpose(1, 2)

    return attend
