"""The base model, and what joins it with a hypernetwork."""

from typing import Any

import torch
from accelerate import Accelerator

from hn.build.processes import build_layout
from hn.config import Config
from hn.data.cache.contexts import Contexts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.objective import Objective
from hn.diffusion.pipeline import Painter
from hn.network.module import Hypernetwork
from hn.training.status import Status


def build_base_model(config: Config, accelerator: Accelerator) -> BaseModel:
    """The frozen model, in the precision of the computation."""
    dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    model, speed = config.model, config.speed
    mixed = accelerator.mixed_precision != "no"
    if speed.allow_tf32 != "auto" or mixed:
        torch.backends.cuda.matmul.allow_tf32 = speed.allow_tf32 != "off"
        torch.backends.cudnn.allow_tf32 = speed.allow_tf32 != "off"
    base = BaseModel.load(
        model.pretrained_model_name_or_path,
        revision=model.revision,
        variant=model.variant,
        prompt_syntax=model.prompt_syntax,
        clip_skip=model.clip_skip,
        dtype=dtypes[accelerator.mixed_precision],
        device=accelerator.device,
    )
    on_cuda = speed.channels_last == "auto" and accelerator.device.type == "cuda"
    if speed.channels_last == "on" or on_cuda:
        unet: Any = base.unet  # its annotations know no memory_format
        unet.to(memory_format=torch.channels_last)
    return base


def build_denoiser(
    config: Config, base: BaseModel, hypernetwork: Hypernetwork, status: Status | None = None
) -> Denoiser:
    """The module that is trained; the status of a run says whether its blocks stay compiled."""
    xformers, speed = config.model.enable_xformers_memory_efficient_attention, config.speed
    denoiser = Denoiser(
        base.unet,
        hypernetwork,
        gradient_checkpointing=config.training.gradient_checkpointing,
        kernel="xformers" if xformers else "sdpa",
        stack_projections=speed.stack_projections != "off",
        note_residuals=config.objective.residual_penalty > 0,
        compile_backend=speed.torch_compile_backend if speed.torch_compile else None,
    )
    if status is not None and (compiled := denoiser.compiled) is not None:
        others = status.notes
        status.notes = lambda: {**others(), "torch_compile": compiled.verdict}
    return denoiser


def build_objective(config: Config, accelerator: Accelerator, base: BaseModel) -> Objective:
    """What is learnt; refused if it names timesteps that the base model lacks."""
    return Objective(
        config.objective,
        base.alphas_cumprod,
        base.prediction,
        seed=config.training.seed,
        global_batch=build_layout(config, accelerator).global_batch,
        device=base.device,
    )


def build_painter(config: Config, base: BaseModel, contexts: Contexts) -> Painter | None:
    """What draws the previews, with the contexts of their prompts; None without prompts."""
    validation = config.validation
    prompts = list(validation.validation_prompt)
    if not prompts:
        return None
    stacked = contexts.stack([*prompts, validation.validation_negative_prompt])
    return Painter(
        base,
        stacked[:-1],
        stacked[-1:],
        size=config.data.size,
        steps=validation.validation_inference_steps,
        guidance_scale=validation.validation_guidance_scale,
        seed=validation.validation_seed,
    )
