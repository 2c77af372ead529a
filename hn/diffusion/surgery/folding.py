"""Linear hypernetworks folded into a UNet's own attention: the same pictures, at no cost.

    with hn.fold(pipeline, [(net, 0.8)]):
        ...

or `folding = hn.fold(...)`, and later `folding.undo()`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import TracebackType
from typing import Any, Self

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm

from hn.diffusion.adapters import unet_of
from hn.diffusion.attending.places import check_fit, dims_by_place, place_of
from hn.diffusion.attending.strength import Choices, is_scheduled, resolve
from hn.diffusion.attention import attention_layers, check_layers
from hn.diffusion.surgery.layer import LayerWeights
from hn.errors import ModelError, OptionError
from hn.network.surgery.affine import Affine, affine_of, check_linear

FOLDING = "folding it into weights"
REMEDY = (
    "Export it as a LoRA (tools/export_lora.py), or distil it into a linear one (tools/distil.py)"
)
Maps = Callable[[str, int], tuple[Affine, Affine]]
"""From a place of the UNet, such as down.1.0, and a width to what keys and values read through."""


def fold(pipe: Any, stack: Choices) -> "Folding":
    """Let a pipeline, or a UNet, read through a `stack` of linear hypernetworks by its weights.

    They read what is attached gives, so an attached hypernetwork comes before them. Raises
    `ModelError` for a hypernetwork that is not linear or for another base model, or for weights
    that are not there, packed, or have a LoRA; `OptionError` for a strength that changes while
    denoising.
    """
    unet = pipe if isinstance(pipe, UNet2DConditionModel) else unet_of(pipe)
    layers = attention_layers(unet)
    check_layers(layers)
    maps = maps_of(stack, dims_by_place(layers))
    for name, layer in layers.items():
        _check_weights(name, layer)
    return Folding(_folded(layers, maps))


def _folded(layers: dict[str, Any], maps: Maps) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """The weights that change, and what they become."""
    for name, layer in tqdm(layers.items(), "folding", unit="layer", delay=1, leave=False):
        parameters = _parameters(layer)
        weights = LayerWeights(*(parameter.detach() for parameter in parameters))
        maps_here = maps(place_of(name), weights.dim)
        folded = weights.wide().fold(*maps_here).stored(weights, None)
        _, to_k, to_v, _, bias = parameters
        yield from ((to_k, folded.to_k), (to_v, folded.to_v), (bias, folded.bias))


def maps_of(
    stack: Choices,
    available: Mapping[str, Iterable[int]],
    act: str = FOLDING,
    remedy: str = REMEDY,
) -> Maps:
    """What a UNet with these widths by place reads through. Raises as `fold` does."""
    if is_scheduled(stack):
        raise OptionError(
            "a strength that changes while denoising cannot be folded into weights: attach the "
            "hypernetwork instead"
        )
    check_linear([net for net, _ in stack], act, remedy)
    check_fit(stack, available)
    stacks = resolve(stack, None, available)
    different = {id(it): it for it in stacks.values()}

    @cache
    def maps(number: int, dim: int) -> tuple[Affine, Affine]:
        return affine_of(different[number], dim, "k"), affine_of(different[number], dim, "v")

    return lambda place, dim: maps(id(stacks[place]), dim)


class Folding:
    """New values for some weights; `undo` restores the old ones to the bit."""

    @torch.no_grad()
    def __init__(self, changes: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        self._before: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for parameter, value in changes:
                self._before.append((parameter, parameter.detach().clone()))
                parameter.copy_(value)
        except BaseException:  # memory, Ctrl-C
            self.undo()
            raise

    @torch.no_grad()
    def undo(self) -> None:
        """Give the UNet its own weights back. Calling it again does nothing."""
        while self._before:
            parameter, own = self._before.pop()
            parameter.copy_(own)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()


def _parameters(layer: Any) -> tuple[nn.Parameter, ...]:
    """In the order of `LayerWeights`."""
    out = layer.to_out[0]
    return layer.to_q.weight, layer.to_k.weight, layer.to_v.weight, out.weight, out.bias


def _check_weights(name: str, layer: Any) -> None:
    """Refuse weights that cannot be changed in place."""
    for part in (layer.to_k, layer.to_v, layer.to_out[0]):
        weight = getattr(part, "weight", None)
        if type(part) is not nn.Linear or weight is None or weight.dtype.itemsize == 1:
            raise ModelError(
                f"the attention layer {name} has a {type(part).__name__} where plain weights are "
                "needed: unload LoRAs, and load the base model without quantisation"
            )
        if weight.device.type == "meta":
            raise ModelError(
                f"the weights of {name} are offloaded: fold before enabling the offload"
            )
    if layer.to_out[0].bias is None or getattr(layer, "fused_projections", False):
        raise ModelError(
            f"the attention layer {name} has fused projections or no bias: undo "
            "fuse_qkv_projections; hypernetworks are for Stable Diffusion 1, 2 and XL"
        )
