"""A frozen UNet whose layers keep less for the backward pass.

    layers = FrozenLayers(unet)
    ...
    layers.remove()

Layers are given another `forward` each, no class is changed; what is not as in Stable Diffusion (a
LoRA's wrapper, a quantised layer, one that another library has put its hands on) stays as it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from hn.diffusion.memory import functions

Forward = Callable[..., Any]
OURS = (functions.convolve, functions.project)  # what stands in for single layers


class FrozenLayers:
    """The layers of a frozen UNet, keeping less until `remove`.

    `gates`: GEGLU layers, by name, that keep their input, a quarter of what they
    project it to, and project it again in the backward pass.
    """

    def __init__(self, unet: UNet2DConditionModel, *, gates: frozenset[str] = frozenset()) -> None:
        self._changed: list[nn.Module] = []
        for name, module in unet.named_modules():
            forward = _forward(module, twice=name in gates)
            if forward is not None:
                self._change(module, forward)
        norm, act, conv = unet.conv_norm_out, unet.conv_act, unet.conv_out
        if type(norm) is nn.GroupNorm and type(act) is nn.SiLU and type(conv) is nn.Conv2d:
            self._change(norm, _as_it_is)
            self._change(act, _as_it_is)
            self._change(conv, partial(functions.convolve_activated, norm, conv))

    def remove(self) -> None:
        """Give the layers their own `forward` back. Calling it again does nothing."""
        for module in self._changed:
            del module.__dict__["forward"]
        self._changed = []

    def _change(self, module: nn.Module, forward: Forward) -> None:
        if module not in self._changed:
            if "forward" in vars(module):
                return
            self._changed.append(module)
        module.forward = forward


def _forward(module: nn.Module, *, twice: bool) -> Forward | None:
    """What a layer is to do instead; None to leave it."""
    if type(module) is nn.Conv2d and module.padding_mode == "zeros":
        return partial(functions.convolve, module)
    if type(module) is nn.GroupNorm:
        return partial(functions.normalise, module)
    if type(module) is nn.LayerNorm:
        return partial(functions.normalise_tokens, module)
    if type(module) is GEGLU:
        return partial(_geglu, module, twice=twice)
    if type(module) is ResnetBlock2D and _is_plain(module):
        return partial(_resnet, module)
    return None


def _is_plain(block: ResnetBlock2D) -> bool:
    """Whether a residual block is one of Stable Diffusion's."""
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and not block.skip_time_act
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.dropout.p == 0
        and type(block.norm1) is type(block.norm2) is nn.GroupNorm
        and type(block.conv1) is type(block.conv2) is nn.Conv2d
        and all(map(_is_known, (block.norm1, block.norm2, block.conv1, block.conv2)))
    )


def _is_known(layer: nn.Module) -> bool:
    """Whether a layer computes as its class does, or as ours."""
    forward = vars(layer).get("forward")
    return forward is None or getattr(forward, "func", None) in OURS


def _resnet(block: Any, x: Tensor, time: Tensor) -> Tensor:
    """`ResnetBlock2D.forward` of x (B, C, h, w) and the time's embedding (B, E)."""
    hidden = functions.convolve_activated(block.norm1, block.conv1, x)
    hidden = hidden + block.time_emb_proj(F.silu(time))[:, :, None, None]
    hidden = functions.convolve_activated(block.norm2, block.conv2, hidden)
    shortcut = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return (shortcut + hidden) / block.output_scale_factor


def _geglu(layer: GEGLU, x: Tensor, *, twice: bool) -> Tensor:
    if twice and type(layer.proj) is nn.Linear and _is_known(layer.proj):
        return functions.project_and_gate(layer.proj, x)
    return functions.gate(layer.proj(x))


def _as_it_is(x: Tensor) -> Tensor:
    return x
