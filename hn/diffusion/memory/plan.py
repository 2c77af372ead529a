"""How a training step saves memory, and a UNet that does so. Results are the same to the bit, but
for convolutions that are faster as products (`hn.diffusion.memory.convolution`).

arrangement = Arrangement(unet, Plan(blocks=blocks_of(unet)))
with arrangement.keeping():
prediction = unet(...)
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from hn.diffusion.memory.frozen import FrozenLayers
from hn.diffusion.memory.offload import Offload


@dataclass(frozen=True)
class Plan:
    """What is kept for the backward pass, and where.

    `frozen_aware`: frozen layers keep only what they must. `gates`: GEGLU layers, by name, that
    keep their input instead of what they project it to (frozen-aware only). `blocks`: residual and
    transformer blocks, by name, that keep their input only. `offload`: what is kept lies in the
    host's memory.
    """

    frozen_aware: bool = False
    gates: frozenset[str] = frozenset()
    blocks: frozenset[str] = frozenset()
    offload: bool = False


class Arrangement:
    """A UNet that trains by a plan until `remove`."""

    def __init__(self, unet: UNet2DConditionModel, plan: Plan) -> None:
        self.plan = plan
        self._unet = unet
        self._layers = FrozenLayers(unet, gates=plan.gates) if plan.frozen_aware else None
        if plan.blocks:
            unet.enable_gradient_checkpointing(_checkpointing(unet, plan.blocks))
            unet.train()  # some blocks checkpoint in training mode only; no dropout wakes

    def keeping(self) -> AbstractContextManager[Any]:
        """What the forward passes within keep is kept as planned."""
        return Offload() if self.plan.offload else nullcontext()

    def remove(self) -> None:
        """Give the UNet back as it was. Calling it again does nothing."""
        if self._layers is not None:
            self._layers.remove()
        if self.plan.blocks:
            self._unet.disable_gradient_checkpointing()
            self._unet.eval()


def blocks_of(unet: UNet2DConditionModel) -> frozenset[str]:
    """The blocks that can be computed again: all that diffusers' own checkpointing has."""
    kinds = (ResnetBlock2D, BasicTransformerBlock)
    return frozenset(name for name, module in unet.named_modules() if isinstance(module, kinds))


def gates_of(unet: UNet2DConditionModel) -> frozenset[str]:
    """The layers that can project again."""
    return frozenset(name for name, module in unet.named_modules() if type(module) is GEGLU)


def _checkpointing(unet: UNet2DConditionModel, names: frozenset[str]) -> Callable[..., Any]:
    """What diffusers calls in place of each block."""
    chosen = {unet.get_submodule(name) for name in names}

    def run(block: nn.Module, *inputs: Any) -> Any:
        if block not in chosen:
            return block(*inputs)
        # The reentrant kind lets no gradient through: no input of a block requires one.
        return checkpoint(block, *inputs, use_reentrant=False)

    return run
