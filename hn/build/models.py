"""The base model, the hypernetwork, and what joins them."""

from pathlib import Path

import torch
from accelerate import Accelerator

from hn.config import Config
from hn.data.cache import Contexts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.pipeline import Painter
from hn.errors import ModelError, OptionError
from hn.network import files
from hn.network.module import Hypernetwork


def build_base_model(config: Config, accelerator: Accelerator) -> BaseModel:
    """The frozen model, in the precision of the computation."""
    dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    model = config.model
    return BaseModel.load(
        model.pretrained_model_name_or_path,
        revision=model.revision,
        variant=model.variant,
        dtype=dtypes[accelerator.mixed_precision],
        device=accelerator.device,
    )


def build_hypernetwork(config: Config, base: BaseModel) -> Hypernetwork:
    """A new hypernetwork, or the one to go on from; refused if the UNet lacks one of its widths."""
    network = config.network
    if network.initial_hypernetwork is not None:
        hypernetwork = files.load(network.initial_hypernetwork)
    else:
        hypernetwork = Hypernetwork.create(
            network.dims or base.dims,
            layer_structure=network.layer_structure,
            activation_func=network.activation_func,
            weight_initialization=network.weight_initialization,
            is_layer_norm=network.is_layer_norm,
            activate_output=network.activate_output,
            dropout_structure=network.dropout_structure,
            seed=config.training.seed,
        )
    unknown = [dim for dim in hypernetwork.dims if dim not in base.dims]
    if unknown:
        raise ModelError(
            f"dims {unknown} are not context widths of {base.name}; it has {base.dims}"
        )
    if hypernetwork.provenance.step >= config.training.max_train_steps:
        raise OptionError(
            f"max_train_steps is {config.training.max_train_steps}, but "
            f"{network.initial_hypernetwork} is at step {hypernetwork.provenance.step} already; "
            "steps are counted over all runs"
        )
    hypernetwork.describe(name=network.name, sd_checkpoint_name=Path(base.name).name)
    return hypernetwork


def build_denoiser(config: Config, base: BaseModel, hypernetwork: Hypernetwork) -> Denoiser:
    """The module that is trained."""
    xformers = config.model.enable_xformers_memory_efficient_attention
    return Denoiser(
        base.unet,
        hypernetwork,
        gradient_checkpointing=config.training.gradient_checkpointing,
        kernel="xformers" if xformers else "sdpa",
    )


def build_painter(config: Config, base: BaseModel, contexts: Contexts) -> Painter | None:
    """What draws the previews, with the contexts of their prompts; None without prompts."""
    validation = config.validation
    prompts = list(validation.validation_prompt)
    if not prompts:
        return None
    return Painter(
        base,
        contexts.stack(prompts),
        contexts.stack([validation.validation_negative_prompt]),
        resolution=config.data.resolution,
        steps=validation.validation_inference_steps,
        guidance_scale=validation.validation_guidance_scale,
        seed=validation.validation_seed,
    )
