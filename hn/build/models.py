"""The base model, and what joins it with a hypernetwork."""

from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor

from hn.build.processes import build_layout
from hn.config import Config, DataConfig
from hn.data.cache.contexts import Contexts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.inpainting import check_base, check_files, of_files
from hn.diffusion.conditions.views import SCORED
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.loading.layout import check_layout
from hn.diffusion.memory.plan import Plan, blocks_of
from hn.diffusion.objective import Objective
from hn.diffusion.pipeline import Painter
from hn.diffusion.sharding import count_held
from hn.errors import OptionError
from hn.network.module import Hypernetwork
from hn.training import zero
from hn.training.gradients import Gradients
from hn.training.telling.status import Status

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGE = 100_000_000  # parameters, from which frozen-aware layers take no more time (0.99 of it)


def check_base_model(config: Config) -> None:
    """Refuse what cannot be a base model before pictures are looked at. Raises `ModelError`."""
    model = config.model
    check_layout(
        model.pretrained_model_name_or_path, revision=model.revision, variant=model.variant
    )


def build_base_model(config: Config, accelerator: Accelerator) -> BaseModel:
    """The frozen model, in the precision of the computation.

    Raises `OptionError` if it is to be dealt out to one process.
    """
    model, speed = config.model, config.speed
    if model.shard_base_model and accelerator.num_processes == 1:
        raise OptionError(
            "shard_base_model deals the base model out to several processes, but one runs: launch "
            "more, as accelerate_configs/fsdp2.yaml does, or leave it out"
        )
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
        vae=model.pretrained_vae_model_name_or_path,
        prediction=model.prediction_type,
        zero_terminal_snr=model.zero_terminal_snr,
        quantisation=config.memory.quantize_base,
        dtype=DTYPES[accelerator.mixed_precision],
        device="cpu" if model.shard_base_model else accelerator.device,
    )
    on_cuda = speed.channels_last == "auto" and accelerator.device.type == "cuda"
    if speed.channels_last == "on" or on_cuda:
        unet: Any = base.unet  # its annotations know no memory_format
        unet.to(memory_format=torch.channels_last)
    if not model.shard_base_model:
        return base
    whole = count_held(base.unet)
    base.shard(accelerator.device, with_deepspeed=config.optimizer.shard_optimizer)
    held = f"{count_held(base.unet) / 1e6:.2f} of {whole / 1e6:.2f} million weights"
    accelerator.print(f"the UNet is dealt out: {held} in each of {accelerator.num_processes}")
    return base


def build_denoiser(
    config: Config,
    base: BaseModel,
    hypernetwork: Hypernetwork,
    plan: Plan | None = None,
    status: Status | None = None,
) -> Denoiser:
    """The module that is trained, by a plan that was chosen or else as the settings say; the status
    of a run says whether its blocks stay compiled.
    """
    xformers, speed = config.model.enable_xformers_memory_efficient_attention, config.speed
    denoiser = Denoiser(
        base.unet,
        hypernetwork,
        plan=plan or plan_of_settings(config, base.unet, base.device),
        kernel="xformers" if xformers else "sdpa",
        stack_projections=speed.stack_projections,
        note_residuals=config.objective.residual_penalty > 0,
        compile_backend=speed.torch_compile_backend if speed.torch_compile else None,
    )
    if status is not None and (compiled := denoiser.compiled) is not None:
        others = status.notes
        status.notes = lambda: {**others(), "torch_compile": compiled.verdict}
    return denoiser


def prepare(
    config: Config, accelerator: Accelerator, denoiser: Denoiser, optimizer: torch.optim.Optimizer
) -> tuple[Any, Any, Gradients]:
    """What is called and stepped, by as many processes as there are, and the gradients between."""
    if config.optimizer.shard_optimizer:
        return zero.deal_out(accelerator, denoiser, optimizer)
    called, stepped = accelerator.prepare(denoiser, optimizer)
    return called, stepped, Gradients(denoiser)


def plan_of_settings(config: Config, unet: UNet2DConditionModel, device: torch.device) -> Plan:
    """How memory is saved where no plan was chosen; the UNet may be one without memory."""
    memory, checkpointing = config.memory, config.training.gradient_checkpointing
    pays = checkpointing or memory.offload_activations
    pays = pays or (device.type == "cpu" and unet.num_parameters() >= LARGE)
    pays = pays and not config.model.shard_base_model  # whose weights come and go
    return Plan(
        frozen_aware=memory.frozen_aware == "on" or (memory.frozen_aware == "auto" and pays),
        blocks=blocks_of(unet) if checkpointing else frozenset(),
        offload=memory.offload_activations,
    )


def check_inpainting(config: Config, *, inpainting: bool) -> None:
    """Refuse what is for inpainting if the base model does none. Raises `OptionError`."""
    data, validation, default = config.data, config.validation, DataConfig()
    several = data.masks_per_image != default.masks_per_image
    wanted = {
        "inpainting_masks": data.inpainting_masks,
        "masks_per_image": data.masks_per_image if several else None,
        "validation_image": validation.validation_image,
    }
    check_base(wanted, inpainting=inpainting)


def check_canvas(config: Config) -> None:
    """Look at what previews are to be painted into. Raises `DataError`."""
    picture, mask = config.validation.validation_image, config.validation.validation_mask
    if picture is not None and mask is not None:
        check_files(picture, mask)


def build_canvas(config: Config, base: BaseModel) -> Tensor | None:
    """What previews of an inpainting model paint into; None: what is blank."""
    picture, mask = config.validation.validation_image, config.validation.validation_mask
    if picture is None or mask is None:
        return None
    return of_files(base, picture, mask, config.data.size)


def build_objective(config: Config, accelerator: Accelerator, base: BaseModel) -> Objective:
    """What is learnt; refused if it names timesteps that the base model lacks."""
    if base.numbers_told == SCORED and not config.objective.timestep_range:
        accelerator.print(
            "a refiner knows the first 200 timesteps alone (arXiv 2307.01952, 2.5): timestep_range "
            "0 200 learns there; previews, which are drawn from pure noise, show little of it"
        )
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
    negative = validation.validation_negative_prompt
    stacked = contexts.stack([*prompts, negative])
    return Painter(
        base,
        stacked[:-1],
        base.negative(stacked[-1:], negative),
        size=config.data.size,
        steps=validation.validation_inference_steps,
        guidance_scale=validation.validation_guidance_scale,
        seed=validation.validation_seed,
        canvas=build_canvas(config, base),
    )
