"""Who is compared: the web UI, LoRAs, and this trainer with each of its features on or off."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hn.benchmark.contender import Contender
from hn.benchmark.loras import loras, stock
from hn.benchmark.scene import Scene
from hn.benchmark.webui import webui
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.memory.plan import Plan

REFERENCE = "webui"  # what ratios and differences are to
OURS = "hn"


CUDNN_FIRST = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def own(
    scene: Scene,
    *,
    frozen_aware: bool = False,
    channels_last: bool = False,
    compile_backend: str | None = None,
    attention: Sequence[SDPBackend] = (),
    **features: Any,
) -> Contender:
    """Our step; `attention` is computed by the first of these kernels that can; other `features`
    are arguments of `Denoiser`. Nothing is compiled to be counted.
    """
    network = scene.make_network()
    unet: Any = scene.make_unet()  # its annotations know no memory_format
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    backend = None if scene.device == "meta" else compile_backend
    plan = Plan(frozen_aware=frozen_aware)
    denoiser = Denoiser(unet, network, plan=plan, compile_backend=backend, **features)

    def forward(noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        with sdpa_kernel([*attention], set_priority=True) if attention else nullcontext():
            return denoiser(noisy, timesteps, condition)[0]

    def remark() -> str:
        return "" if denoiser.compiled is None else denoiser.compiled.verdict

    return Contender(scene, forward, list(network.parameters()), network=network, remark=remark)


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
    "hn-cudnn-attention": partial(own, attention=CUDNN_FIRST),
    "hn-compiled": partial(own, compile_backend="inductor"),
}
