"""The plug-in that makes a UNet's attention read what hypernetworks make of its context.

    with hn.attach(unet, [(net, 1.0), (other, hn.Strength(0.4, v=0.0))]):
        ...

Every attention layer gets a processor that transforms its context before `to_k` and `to_v`. The
text context is the same for all layers, so it is transformed once per UNet forward (once for each
part of the UNet if their strengths differ, once for each block with modules of its own), in a hook,
and handed down through `cross_attention_kwargs`; self-attention contexts differ and are transformed
in their layer. With dropout active the text is transformed in each layer too, since there each
layer draws its own. Where no gradient is wanted, what was made of a text is remembered for the next
forward (`recall.py`). While training nothing is: a gradient-checkpointed block that finds a
remembered context would recompute another graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from hn.diffusion.attending.kernels import REPLACEABLE, Kernel, choose_kernel
from hn.diffusion.attending.places import check_fit, dims_by_place, divide, place_of
from hn.diffusion.attending.processor import DirectAttention, HypernetworkAttention, Reading
from hn.diffusion.attending.projections import Linears, Projections
from hn.diffusion.attending.recall import Recall, list_ingredients
from hn.diffusion.attending.strength import (
    Choices,
    Timesteps,
    is_scheduled,
    measure_progress,
    resolve,
)
from hn.errors import ModelError, OptionError

_uncompiled: Any = torch.compiler.disable  # its annotations know no functions
_UNKNOWN_EXTRAS = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj")


def attach(
    unet: UNet2DConditionModel,
    stack: Choices,
    *,
    kernel: Kernel | None = None,
    transform_once: bool = True,
    stack_projections: bool = False,
    follow: bool = False,
    timesteps: Timesteps | None = None,
) -> "Attachment":
    """Make `unet` read through the `stack` until the result is detached, or left by `with`.

    A layer whose width no hypernetwork has keeps its context, as in the web UI; a width or block
    that no layer has is warned about, a hypernetwork for another family of base models refused.
    Without a `kernel`, each layer keeps the one it has. `transform_once=False` transforms the text
    in every layer, for comparison. `stack_projections` computes keys and values of the text by few
    large products, for training; the UNet's weights become views of their matrices. `follow` moves
    the hypernetworks to wherever the UNet computes, in its precision. A strength that changes while
    denoising needs the `timesteps`, such as `lambda: pipeline.scheduler.timesteps`.

    Raises `ModelError` if nothing fits the UNet or something is attached already, `OptionError` if
    xformers is asked for and missing, or `timesteps` are.
    """
    return Attachment(
        unet,
        stack,
        kernel=kernel,
        transform_once=transform_once,
        stack_projections=stack_projections,
        follow=follow,
        timesteps=timesteps,
    )


def context_dims(unet: UNet2DConditionModel) -> tuple[int, ...]:
    """Every context width of the UNet's attention, ascending: (320, 640, 768, 1280) for SD 1."""
    return tuple(sorted({layer.to_k.in_features for layer in attention_layers(unet).values()}))


class Attachment:
    """Hypernetworks attached to a UNet; `detach` restores the processors that were there."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        stack: Choices,
        *,
        kernel: Kernel | None = None,
        transform_once: bool = True,
        stack_projections: bool = False,
        follow: bool = False,
        timesteps: Timesteps | None = None,
    ) -> None:
        self.stack = list(stack)
        self._layers = attention_layers(unet)
        self._kernel: Kernel | None = kernel
        self._once = transform_once and unet.config["encoder_hid_dim_type"] is None
        self._follow = follow
        self._timesteps = timesteps
        self._stacked = stack_projections
        fine = {name: place_of(name) for name in self._layers}
        self._places = divide(fine, (net for net, _ in self.stack))
        self._projections = Projections(self._layers, self._places, stacked=stack_projections)
        self._recall = Recall()
        self._precision: torch.dtype | None = None
        if is_scheduled(self.stack) and timesteps is None:
            raise OptionError("a strength with a schedule needs the timesteps of the denoising")
        check_layers(self._layers)
        check_fit(self.stack, dims_by_place(self._layers))
        self._before: dict[str, Any] = {}
        self._ours = {
            name: self._processor(name, layer.processor) for name, layer in self._layers.items()
        }
        for name, layer in self._layers.items():
            self._install(name, layer)
            _make(layer, Attention, DirectAttention)
        self._hook = unet.register_forward_pre_hook(self._prepare, with_kwargs=True)

    def detach(self) -> None:
        """Give the UNet its own attention back. Calling it again does nothing."""
        for name, processor in self._before.items():
            if self._layers[name].processor is self._ours[name]:
                self._layers[name].set_processor(processor)
        for layer in self._layers.values():
            _make(layer, DirectAttention, Attention)
        self._before = {}
        self._hook.remove()
        self.forget()

    def forget(self) -> None:
        """Let go of what is remembered of texts: needed where weights change through `.data`."""
        self._recall.forget()

    @contextmanager
    def computing_in(self, precision: torch.dtype) -> Iterator[None]:
        """Let hypernetworks of float32 compute by autocast in this precision, and the UNet not.

        Autocast has norms in float32, which a UNet of half precision need not have: on CUDA that
        would more than double what is moved and kept of them. The weights are cast once for as long
        as the caller's autocast lasts, which is one forward.
        """
        self._precision = precision
        try:
            yield
        finally:
            self._precision = None

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Set all strengths for a while, in evaluation mode (training ignores strength)."""
        before, training = list(self.stack), [net.training for net, _ in self.stack]
        self.stack[:] = [(net.eval(), strength) for net, _ in before]
        self.forget()
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

    def _processor(self, name: str, replaced: Any) -> "HypernetworkAttention":
        """One of ours for what a layer has. Raises `ModelError` if that is not diffusers' own."""
        _check_processor(name, replaced)
        attend = choose_kernel(replaced, self._kernel)
        return HypernetworkAttention(self.stack, attend, name, self._places[name])

    def _install(self, name: str, layer: Any) -> None:
        self._before[name] = layer.processor
        layer.set_processor(self._ours[name])

    def _replace_again(self) -> None:
        """Put ours where attention slicing or the like was switched on or off in the meantime."""
        for name, layer in self._layers.items():
            if layer.processor is not self._ours[name]:
                self._ours[name] = self._processor(name, layer.processor)
                self._install(name, layer)

    def _move(self, context: Tensor) -> None:
        for net, _ in self.stack:
            net.to(context.device, context.dtype)

    def _prepare(
        self, unet: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Forward pre-hook: hand the `Reading` of this forward down to all layers."""
        if any(layer.processor is not self._ours[name] for name, layer in self._layers.items()):
            _uncompiled(self._replace_again)()
        context = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        if self._follow and not all(_is_like(net, context) for net, _ in self.stack):
            _uncompiled(self._move)(context)
        progress = None
        if self._timesteps is not None and is_scheduled(self.stack):
            timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
            progress = measure_progress(timestep, self._timesteps())
        given = kwargs.get("cross_attention_kwargs") or {}
        handed_down = {**given, "reading": self._read(context, progress)}
        return args, {**kwargs, "cross_attention_kwargs": handed_down}

    def _read(self, text: Tensor, progress: Tensor | None) -> Reading:
        """The `Reading` of a text context (B, T, D) at a progress ()."""
        stacks = resolve(self.stack, progress, dict.fromkeys(self._places.values()))
        bare = Reading(stacks, None, precision=self._precision)
        if not self._once or any(net.has_active_dropout for net, _ in self.stack):
            return bare
        linears = self._projections.linears(text)
        ingredients = list_ingredients(text, bare, linears)
        if ingredients is None:
            self.forget()
            return self._read_ahead(text, bare, linears if self._stacked else {})
        remembered = self._recall.find(ingredients)
        if remembered is not None:
            return remembered
        reading = self._read_ahead(text, bare, linears)
        self._recall.keep(ingredients, reading)
        return reading

    def _read_ahead(self, text: Tensor, bare: Reading, linears: Linears) -> Reading:
        """The reading with the text transformed, and with keys and values of these layers."""
        made: dict[int, tuple[Tensor, Tensor]] = {}
        for place, stack in bare.stacks.items():
            if id(stack) not in made:
                made[id(stack)] = bare.transform(text, place)
        contexts = {place: made[id(stack)] for place, stack in bare.stacks.items()}
        return replace(bare, contexts=contexts, projected=self._projections(contexts, linears))


def _make(layer: Any, one: type[Attention], another: type[Attention]) -> None:
    """Turn a layer of one class into one of another, which differ in how they call processors."""
    if type(layer) is one:
        layer.__class__ = another


def _is_like(net: torch.nn.Module, context: Tensor) -> bool:
    """Whether the hypernetwork is on the context's device, in its precision."""
    weight = next(net.parameters())
    return weight.device == context.device and weight.dtype == context.dtype


def attention_layers(unet: UNet2DConditionModel) -> dict[str, Any]:
    """The attention layers of a UNet by name."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}


def _check_processor(name: str, processor: Any) -> None:
    if isinstance(processor, HypernetworkAttention):
        raise ModelError(
            "this UNet has hypernetworks attached: detach them first, or attach all as one stack"
        )
    if not isinstance(processor, REPLACEABLE):
        raise ModelError(
            f"the attention layer {name} has a processor of its own "
            f"({type(processor).__name__}); unload what installed it (an IP-Adapter, say) "
            "before attaching hypernetworks"
        )


def check_layers(layers: dict[str, Any]) -> None:
    """Refuse attention that normalises or extends its context on its own, unlike SD 1, 2 and XL."""
    for name, layer in layers.items():
        extras = [extra for extra in _UNKNOWN_EXTRAS if getattr(layer, extra, None) is not None]
        if extras or layer.residual_connection:
            raise ModelError(
                f"the attention layer {name} has extras ({', '.join(extras) or 'residual'}) of "
                "another kind of model; hypernetworks are for Stable Diffusion 1, 2 and XL"
            )
