"""Who is compared: the web UI, LoRAs, and this trainer with each of its features on or off."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hn.benchmark.contender import Contender
from hn.benchmark.loras import loras, stock
from hn.benchmark.scene import Scene
from hn.benchmark.webui import webui
from hn.diffusion.condition import Condition
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.memory.plan import Plan

REFERENCE = "webui"  # what ratios and differences are to
OURS = "hn"


def own(
    scene: Scene, *, frozen_aware: bool = False, channels_last: bool = False, **features: Any
) -> Contender:
    """Our step; other `features` are arguments of `Denoiser`."""
    network = scene.make_network()
    unet: Any = scene.make_unet()  # its annotations know no memory_format
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    denoiser = Denoiser(unet, network, plan=Plan(frozen_aware=frozen_aware), **features)

    def forward(noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        return denoiser(noisy, timesteps, condition)[0]

    return Contender(scene, forward, list(network.parameters()), network=network)


# One line for each feature that can be on or off.
CONTENDERS: dict[str, Callable[[Scene], Contender]] = {
    REFERENCE: webui,
    "webui-unet-grads": partial(webui, unet_grads=True),
    "lora": loras,
    "lora-rank-4": partial(loras, rank=4),
    "diffusers-lora": stock,
    OURS: own,
    "hn-per-layer": partial(own, transform_once=False),
    "hn-frozen-aware": partial(own, frozen_aware=True),
    "hn-gradient-checkpointing": partial(own, gradient_checkpointing=True),
    "hn-both": partial(own, frozen_aware=True, gradient_checkpointing=True),
    "hn-stacked-projections": partial(own, stack_projections=True),
    "hn-channels-last": partial(own, channels_last=True),
}
