"""The plug-in that makes a UNet's attention read what hypernetworks make of its context.

    with hn.attach(unet, [(net, 1.0), (other, 0.4)]):
        ...

Every attention layer gets a processor that transforms its context before `to_k` and `to_v`. The
text context is the same for all layers, so it is transformed once per UNet forward, in a hook, and
handed down through `cross_attention_kwargs`; self-attention contexts differ and are transformed in
their layer. With dropout active the text is transformed in each layer too, since there each layer
draws its own. Nothing is remembered between forwards: a gradient-checkpointed block that finds a
remembered context would recompute another graph.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    XFormersAttnProcessor,
)
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from hn.errors import ModelError, OptionError
from hn.network.module import Hypernetwork, Stack, transform_context

Kernel = Literal["sdpa", "xformers"]
_Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
_UNKNOWN_EXTRAS = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj")
_REPLACEABLE = (AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor)


def attach(
    unet: UNet2DConditionModel,
    stack: Sequence[tuple[Hypernetwork, float]],
    *,
    kernel: Kernel = "sdpa",
    transform_once: bool = True,
) -> "Attachment":
    """Make `unet` read through the `stack` until the result is detached, or left by `with`.

    A layer whose width no hypernetwork has keeps its context, as in the web UI; a width that no
    layer has is warned about. `transform_once=False` transforms the text in every layer, for
    comparison. Raises `ModelError` if nothing fits the UNet or something is attached already,
    `OptionError` if xformers is asked for and missing.
    """
    return Attachment(unet, stack, kernel=kernel, transform_once=transform_once)


def context_dims(unet: UNet2DConditionModel) -> tuple[int, ...]:
    """Every context width of the UNet's attention, ascending: (320, 640, 768, 1280) for SD 1."""
    return tuple(sorted({layer.to_k.in_features for layer in _attention_layers(unet).values()}))


class Attachment:
    """Hypernetworks attached to a UNet; `detach` restores the processors that were there."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        stack: Stack,
        *,
        kernel: Kernel = "sdpa",
        transform_once: bool = True,
    ) -> None:
        self.stack = list(stack)
        self._unet = unet
        self._before = dict(unet.attn_processors)
        _check_processors(self._before)
        _check_layers(_attention_layers(unet))
        _check_dims(self.stack, context_dims(unet))
        attend = _xformers() if kernel == "xformers" else _sdpa
        processors: dict[str, Any] = {
            name: HypernetworkAttention(self.stack, attend) for name in self._before
        }
        unet.set_attn_processor(processors)
        self._hook = (
            unet.register_forward_pre_hook(self._transform_text, with_kwargs=True)
            if (transform_once and unet.config["encoder_hid_dim_type"] is None)
            else None
        )

    def detach(self) -> None:
        """Give the UNet its own attention back. Calling it again does nothing."""
        if self._before:
            self._unet.set_attn_processor(self._before)
            self._before = {}
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Set all strengths for a while, in evaluation mode (training ignores strength)."""
        before, training = list(self.stack), [net.training for net, _ in self.stack]
        self.stack[:] = [(net.eval(), strength) for net, _ in before]
        try:
            yield
        finally:
            self.stack[:] = before
            for (net, _), mode in zip(before, training, strict=True):
                net.train(mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def _transform_text(
        self, unet: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward pre-hook: transform the text context (B, T, D) once and hand it to all layers."""
        context = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        if any(net.has_active_dropout for net, _ in self.stack):
            return None
        context_k, context_v = transform_context(context, self.stack)
        handed_down = {
            **(kwargs.get("cross_attention_kwargs") or {}),
            "context_k": context_k,
            "context_v": context_v,
        }
        return args, {**kwargs, "cross_attention_kwargs": handed_down}


class HypernetworkAttention:
    """An attention processor that reads the context through a stack of hypernetworks.

    diffusers passes on only the keyword arguments that `__call__` names, hence `context_k` and
    `context_v`.
    """

    def __init__(self, stack: Stack, attend: "_Attend") -> None:
        self.stack = stack
        self.attend = attend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        context_k: Tensor | None = None,
        context_v: Tensor | None = None,
    ) -> Tensor:
        """Attention of `hidden_states` (B, N, C) to a context (B, T, D), or to themselves."""
        if encoder_hidden_states is None:
            context_k, context_v = transform_context(hidden_states, self.stack)
        elif context_k is None or context_v is None:
            context_k, context_v = transform_context(encoder_hidden_states, self.stack)
        query = _split_heads(attn.to_q(hidden_states), attn.heads)  # (B, H, N, C/H)
        key = _split_heads(attn.to_k(context_k), attn.heads)  # (B, H, T, C/H)
        value = _split_heads(attn.to_v(context_v), attn.heads)
        mask = _mask_for_heads(attn, attention_mask, key)
        attended = _upcast(self.attend, attn, query, key, value, mask)
        merged = attended.transpose(1, 2).flatten(2).to(query.dtype)  # (B, N, C)
        return attn.to_out[1](attn.to_out[0](merged))


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _mask_for_heads(attn: Any, mask: Tensor | None, key: Tensor) -> Tensor | None:
    """Diffusers' additive mask, repeated for each head: (B, H, 1, T)."""
    if mask is None:
        return None
    batch, heads, tokens, _ = key.shape
    prepared = attn.prepare_attention_mask(mask, tokens, batch)
    return prepared.view(batch, heads, -1, prepared.shape[-1])


def _upcast(
    attend: _Attend, attn: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Tensor:
    """Attend in float32 where the model asks for it (SD 2.1 overflows in half precision)."""
    if not attn.upcast_attention:
        return attend(query, key, value, mask)
    with torch.autocast(query.device.type, enabled=False):
        return attend(
            query.float(), key.float(), value.float(), None if mask is None else mask.float()
        )


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _xformers() -> _Attend:
    try:
        from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]  # an extra
    except ImportError as error:
        raise OptionError(
            "attention_kernel 'xformers' needs the package xformers, which is not installed: pip "
            "install -e '.[xformers]', or use attention_kernel 'sdpa'"
        ) from error

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        bias = None if mask is None else mask.expand(-1, -1, query.shape[2], -1)
        # xformers wants (B, N, H, C/H)
        heads_last = (x.transpose(1, 2) for x in (query, key, value))
        return memory_efficient_attention(*heads_last, attn_bias=bias).transpose(1, 2)

    return attend


def _attention_layers(unet: UNet2DConditionModel) -> dict[str, Any]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}


def _check_processors(processors: dict[str, Any]) -> None:
    for name, processor in processors.items():
        if isinstance(processor, HypernetworkAttention):
            raise ModelError(
                "this UNet has hypernetworks attached: detach them first, or attach all as one "
                "stack"
            )
        if not isinstance(processor, _REPLACEABLE):
            raise ModelError(
                f"the attention layer {name} has a processor of its own "
                f"({type(processor).__name__}); unload what installed it (an IP-Adapter, say) "
                "before attaching hypernetworks"
            )


def _check_layers(layers: dict[str, Any]) -> None:
    """Refuse attention that normalises or extends its context on its own, unlike SD 1, 2 and XL."""
    for name, layer in layers.items():
        extras = [extra for extra in _UNKNOWN_EXTRAS if getattr(layer, extra, None) is not None]
        if extras or layer.residual_connection:
            raise ModelError(
                f"the attention layer {name} has extras ({', '.join(extras) or 'residual'}) of "
                "another kind of model; hypernetworks are for Stable Diffusion 1 and 2"
            )


def _check_dims(stack: Stack, available: tuple[int, ...]) -> None:
    for net, _ in stack:
        unknown = sorted(set(net.dims) - set(available))
        name = net.provenance.name or "the hypernetwork"
        if len(unknown) == len(net.dims):
            raise ModelError(
                f"{name} has the widths {net.dims}, the UNet {available}: it is for another base "
                "model"
            )
        if unknown:
            warnings.warn(
                f"{name}: the UNet has no attention of width {unknown}; they do nothing",
                stacklevel=4,
            )
