"""A training step rehearsed on meta tensors: what it will hold, to the byte, without computing.

    rehearse(Step(unet=..., network=..., ...), Plan())

Autocast knows no meta tensors. So the hypernetwork is rehearsed in the dtype of the computation,
and what autocast adds is there beside it: copies of its weights, and gradients in float32.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from hn.benchmark.memory import PeakMemory
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.views import SIZES
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.memory.plan import Plan
from hn.diffusion.memory.quantisation import Quantisation, store_in_float8
from hn.network.contents import skeleton
from hn.network.description import HypernetworkConfig


@dataclass(frozen=True)
class Step:
    """All that the memory of a micro-batch depends on, but the plan.

    `unet`: its configuration as JSON. `height`, `width`: of latents. `tokens`: of a context.
    `accumulates`: the gradients of an earlier micro-batch are there (they count elsewhere).
    """

    unet: str
    network: HypernetworkConfig
    dtype: torch.dtype
    batch: int
    height: int
    width: int
    tokens: int = 77
    quantisation: Quantisation = "none"
    note_residuals: bool = False
    accumulates: bool = False


@lru_cache
def rehearse(step: Step, plan: Plan) -> int:
    """The most bytes that forward and backward pass hold at once, gradients among them."""
    with rehearsal(step, plan) as denoiser:
        parameters = list(denoiser.hypernetwork.parameters())
        with PeakMemory() as held:
            beside = (
                [] if step.dtype == torch.float32 else [torch.empty_like(p) for p in parameters]
            )
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(_Gradients(beside, step.accumulates))
            prediction, residual = denoiser(*inputs(step, denoiser.unet))
            ((prediction.float() - 1).square().mean() + residual).backward()
        return held.peak


@lru_cache
def rehearse_drawing(step: Step, batch: int) -> int:
    """The most bytes that a forward pass of so many samples holds, where nothing is learnt."""
    drawn = replace(step, batch=batch)
    with rehearsal(drawn, Plan()) as denoiser, PeakMemory() as held, torch.no_grad():
        denoiser.predict(*inputs(drawn, denoiser.unet))
    return held.peak


@contextmanager
def rehearsal(step: Step, plan: Plan) -> Iterator[Denoiser]:
    """The denoiser of a step on meta tensors; afterwards its UNet serves the next."""
    unet = meta_unet(step.unet, step.dtype, step.quantisation)
    network = skeleton(step.network).to(step.dtype).train()
    denoiser = Denoiser(unet, network, plan=plan, note_residuals=step.note_residuals)
    try:
        yield denoiser
    finally:
        denoiser.attachment.detach()
        denoiser.arrangement.remove()


def inputs(step: Step, unet: UNet2DConditionModel) -> tuple[Tensor, Tensor, Condition]:
    """Noisy latents (B, C, h, w), timesteps (B,) and what the UNet is told of each picture."""
    with torch.device("meta"):
        noisy = torch.empty(step.batch, unet.config["in_channels"], step.height, step.width)
        condition = blank_condition(unet, step.batch, step.tokens, step.dtype)
        return noisy, torch.empty(step.batch, dtype=torch.long), condition


def blank_condition(
    unet: UNet2DConditionModel, batch: int, tokens: int, dtype: torch.dtype
) -> Condition:
    """A condition of the shapes that a UNet expects, without values, on the default device.

    A refiner of Stable Diffusion XL is told five numbers instead of six, and a pooled text of its
    own width; here it gets six and a shorter text, which its embedding joins to as much.
    """
    config: Any = unet.config
    context = torch.empty(batch, tokens, config["cross_attention_dim"], dtype=dtype)
    if config["addition_embed_type"] != "text_time":
        return Condition(context=context)
    sizes = SIZES * config["addition_time_embed_dim"]
    pooled = config["projection_class_embeddings_input_dim"] - sizes
    return Condition(
        context=context,
        pooled=torch.empty(batch, pooled, dtype=dtype),
        time_ids=torch.empty(batch, SIZES),
    )


@lru_cache(maxsize=1)
def meta_unet(
    config: str, dtype: torch.dtype, quantisation: Quantisation = "none"
) -> UNet2DConditionModel:
    """The UNet of a configuration, without weights."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(json.loads(config))
    nn.Module.to(unet, dtype)  # diffusers' own warns
    if quantisation == "fp8":  # by bitsandbytes there are no meta tensors
        store_in_float8(unet)
    return unet.requires_grad_(False).eval()


class _Gradients:
    """Holds a gradient in float32, as parameters have it, in place of the one in another dtype."""

    def __init__(self, held: list[Tensor], accumulates: bool) -> None:
        self._held = held
        self._accumulates = accumulates

    def __call__(self, parameter: Tensor) -> None:
        if not self._accumulates:
            self._held.append(torch.empty_like(parameter, dtype=torch.float32))
        parameter.grad = None
