"""Who is compared: the web UI, LoRAs, and this trainer with each of its features on or off."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from hn.benchmark.contender import Contender
from hn.benchmark.scene import Scene
from hn.benchmark.webui import webui
from hn.diffusion.denoiser import Condition, Denoiser, predict
from hn.evaluation import lora

REFERENCE = "webui"  # what ratios and differences are to
OURS = "hn"


def own(scene: Scene, **features: Any) -> Contender:
    """Our step; `features` are arguments of `Denoiser`."""
    network = scene.make_network()
    denoiser = Denoiser(scene.make_unet(), network, **features)

    def forward(noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        return denoiser(noisy, timesteps, Condition(context))[0]

    return Contender(scene, forward, list(network.parameters()), network=network)


def loras(scene: Scene, rank: int | None = None) -> Contender:
    """A LoRA on the same UNet, of that rank, or of as many parameters as the hypernetwork."""
    lora.check_installed()
    unet, size = scene.make_unet(), sum(p.numel() for p in scene.make_network().parameters())
    parameters = lora.add(unet, rank or lora.rank_of(unet, size), seed=0)
    for parameter in parameters:
        parameter.data = parameter.data.to(scene.device, scene.network_dtype)

    def forward(noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        return predict(unet, noisy, timesteps, Condition(context))

    return Contender(scene, forward, parameters)


# One line for each feature that can be on or off.
CONTENDERS: dict[str, Callable[[Scene], Contender]] = {
    REFERENCE: webui,
    "webui-unet-grads": partial(webui, unet_grads=True),
    "lora": loras,
    "lora-rank-4": partial(loras, rank=4),
    OURS: own,
    "hn-per-layer": partial(own, transform_once=False),
    "hn-gradient-checkpointing": partial(own, gradient_checkpointing=True),
}
