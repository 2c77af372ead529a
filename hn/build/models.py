"""The base model, and what joins it with a hypernetwork."""

import torch
from accelerate import Accelerator

from hn.build.processes import build_layout
from hn.config import Config
from hn.data.cache.contexts import Contexts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.objective import Objective
from hn.diffusion.pipeline import Painter
from hn.diffusion.sharding import count_held
from hn.errors import OptionError
from hn.network.module import Hypernetwork


def build_base_model(config: Config, accelerator: Accelerator) -> BaseModel:
    """The frozen model, in the precision of the computation.

    Raises `OptionError` if it is to be dealt out to one process.
    """
    dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    model = config.model
    if model.shard_base_model and accelerator.num_processes == 1:
        raise OptionError(
            "shard_base_model deals the base model out to several processes, but one runs: launch "
            "more, as accelerate_configs/fsdp2.yaml does, or leave it out"
        )
    base = BaseModel.load(
        model.pretrained_model_name_or_path,
        revision=model.revision,
        variant=model.variant,
        prompt_syntax=model.prompt_syntax,
        clip_skip=model.clip_skip,
        dtype=dtypes[accelerator.mixed_precision],
        device="cpu" if model.shard_base_model else accelerator.device,
    )
    if not model.shard_base_model:
        return base
    whole = count_held(base.unet)
    base.shard(accelerator.device)
    held = f"{count_held(base.unet) / 1e6:.2f} of {whole / 1e6:.2f} million weights"
    accelerator.print(f"the UNet is dealt out: {held} in each of {accelerator.num_processes}")
    return base


def build_denoiser(config: Config, base: BaseModel, hypernetwork: Hypernetwork) -> Denoiser:
    """The module that is trained."""
    xformers = config.model.enable_xformers_memory_efficient_attention
    return Denoiser(
        base.unet,
        hypernetwork,
        gradient_checkpointing=config.training.gradient_checkpointing,
        kernel="xformers" if xformers else "sdpa",
        note_residuals=config.objective.residual_penalty > 0,
    )


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
