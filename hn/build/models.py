"""The base model, and what joins it with a hypernetwork."""

import torch
from accelerate import Accelerator

from hn.build.processes import build_layout
from hn.config import Config
from hn.data.cache.contexts import Contexts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.memory.plan import Plan, blocks_of
from hn.diffusion.objective import Objective
from hn.diffusion.pipeline import Painter
from hn.network.module import Hypernetwork

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGE = 100_000_000  # parameters, from which frozen-aware layers take no more time (0.99 of it)


def build_base_model(config: Config, accelerator: Accelerator) -> BaseModel:
    """The frozen model, in the precision of the computation."""
    model = config.model
    return BaseModel.load(
        model.pretrained_model_name_or_path,
        revision=model.revision,
        variant=model.variant,
        prompt_syntax=model.prompt_syntax,
        clip_skip=model.clip_skip,
        quantisation=config.memory.quantize_base,
        dtype=DTYPES[accelerator.mixed_precision],
        device=accelerator.device,
    )


def build_denoiser(
    config: Config, base: BaseModel, hypernetwork: Hypernetwork, plan: Plan | None = None
) -> Denoiser:
    """The module that is trained, by a plan that was chosen or else as the settings say."""
    xformers = config.model.enable_xformers_memory_efficient_attention
    return Denoiser(
        base.unet,
        hypernetwork,
        plan=plan or _plan_of_settings(config, base),
        kernel="xformers" if xformers else "sdpa",
        note_residuals=config.objective.residual_penalty > 0,
    )


def _plan_of_settings(config: Config, base: BaseModel) -> Plan:
    memory, checkpointing = config.memory, config.training.gradient_checkpointing
    pays = checkpointing or memory.offload_activations
    pays = pays or (base.device.type == "cpu" and base.unet.num_parameters() >= LARGE)
    return Plan(
        frozen_aware=memory.frozen_aware == "on" or (memory.frozen_aware == "auto" and pays),
        blocks=blocks_of(base.unet) if checkpointing else frozenset(),
        offload=memory.offload_activations,
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
