"""The objects of a run, each made from its section of the settings by one `build_` function."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor

from hn import rng
from hn.config import Config
from hn.data.batches import Batch, Batches, Layout, Prompts
from hn.data.cache import Contexts, encode_latents
from hn.data.captions import fill, load_template
from hn.data.images import check_pictures, load_examples, read_folder
from hn.diffusion import objective
from hn.diffusion.base_model import BaseModel, check_layout
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.pipeline import Painter
from hn.errors import ModelError, OptionError
from hn.network import files
from hn.network.module import Hypernetwork
from hn.training import schedule
from hn.training.checkpoint import Checkpoints, TrainingState, find, restore
from hn.training.guard import Guard
from hn.training.reporter import Reporter
from hn.training.status import Status


def build_schedules(config: Config) -> tuple[schedule.Schedule, schedule.Schedule]:
    """Learning rate and clipping bound."""
    optimizer, end = config.optimizer, config.training.max_train_steps
    rates = schedule.Schedule(
        schedule.parse_positive(optimizer.learning_rate, end, setting="learning_rate"),
        warmup_steps=optimizer.lr_warmup_steps,
        cosine=optimizer.lr_scheduler == "cosine",
    )
    bounds = schedule.Schedule(
        schedule.parse_positive(optimizer.clip_grad_value, end, setting="clip_grad_value")
    )
    return rates, bounds


def build_dataset(config: Config) -> tuple[Dataset, str]:
    """The pictures, all of them decoded once, and a digest of their content."""
    # A wrong model should not wait for the pictures.
    check_layout(config.model.pretrained_model_name_or_path)
    load_template(config.data.template)
    dataset = load_examples(config.data)
    return dataset, check_pictures(dataset, config.data.resolution)


def build_held_out_dataset(config: Config) -> Dataset | None:
    """The held-out pictures, if there are any, all of them decoded once."""
    data = config.data
    if data.validation_data_dir is None:
        return None
    folder = Path(data.validation_data_dir)
    dataset = read_folder(folder, data.missing_caption, setting="validation_data_dir")
    check_pictures(dataset, data.resolution)
    return dataset


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


def build_held_out(
    config: Config, dataset: Dataset | None, base: BaseModel, contexts: Contexts
) -> tuple[Tensor, Tensor] | None:
    """Latents (N, C, h, w) and contexts (N, T, D) of the held-out pictures, if there are any."""
    if dataset is None:
        return None
    plain = replace(config.data, random_crop=False, random_flip=False)
    latents = encode_latents(dataset, base, plain, config.training.seed)
    line = load_template(config.data.template)[0]
    prompts = [fill(line, caption, config.network.name) for caption in dataset["caption"]]
    return latents.moments.mean[:, 0], contexts.stack(prompts)


def build_batches(
    config: Config, accelerator: Accelerator, dataset: Dataset, base: BaseModel, contexts: Contexts
) -> Batches:
    """The training pictures encoded, and the stream of batches over them."""
    training, data = config.training, config.data
    layout = Layout(
        batch_size=training.train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    prompts = Prompts(
        list(dataset["caption"]),
        load_template(data.template),
        config.network.name,
        data,
        training.seed,
    )
    latents = encode_latents(dataset, base, data, training.seed)
    every_prompt = prompts.all()
    report_cut_prompts(base, every_prompt or list(dataset["caption"]), accelerator)
    if every_prompt is not None:
        contexts.encode(every_prompt)
        base.free_text_encoder()
    if config.validation.validation_prompt:
        base.park_vae()
    else:
        base.free_vae()
    if layout.global_batch > len(dataset):
        accelerator.print(
            f"{len(dataset)} pictures for a global batch of {layout.global_batch}: steps repeat "
            "pictures"
        )
    return Batches(latents, prompts, contexts, layout, training.seed)


def report_cut_prompts(base: BaseModel, prompts: list[str], accelerator: Accelerator) -> None:
    """Say how many prompts are longer than the text encoder reads."""
    cut = [prompt for prompt in prompts if base.excess_tokens(prompt)]
    if cut:
        accelerator.print(
            f"{len(cut)} of {len(prompts)} prompts are cut at {base.tokenizer.model_max_length} "
            f"tokens; the longest begins {max(cut, key=len)[:60]!r}"
        )


def build_denoiser(config: Config, base: BaseModel, hypernetwork: Hypernetwork) -> Denoiser:
    """The module that is trained."""
    xformers = config.model.enable_xformers_memory_efficient_attention
    return Denoiser(
        base.unet,
        hypernetwork,
        gradient_checkpointing=config.training.gradient_checkpointing,
        kernel="xformers" if xformers else "sdpa",
    )


def build_state(
    config: Config,
    accelerator: Accelerator,
    hypernetwork: Hypernetwork,
    optimizer: torch.optim.Optimizer,
    digest: str,
    status: Status,
) -> TrainingState:
    """The state at the start, or that of the checkpoint to resume from."""
    training, data = config.training, config.data
    fingerprint = {
        "base_model": Path(config.model.pretrained_model_name_or_path).name,
        "structure": asdict(hypernetwork.config),
        "pictures": digest,
        "global_batch": training.train_batch_size
        * training.gradient_accumulation_steps
        * accelerator.num_processes,
        "seed": training.seed,
        **{
            key: value
            for key, value in asdict(data).items()
            if not key.endswith(("_dir", "_name", "_column"))
        },
    }
    state = TrainingState(
        hypernetwork,
        optimizer,
        hypernetwork.provenance.step,
        accelerator.scaler,
        fingerprint=fingerprint,
    )
    which = config.output.resume_from_checkpoint
    if which is not None:
        path = find(status.folder / "checkpoints", which)
        restore(path, state)
        accelerator.print(f"resumed from {path} at step {state.step}")
    status.state = state
    return state


def build_reporter(
    config: Config,
    accelerator: Accelerator,
    folder: Path,
    state: TrainingState,
    batches: Batches,
    last_step: int,
) -> Reporter:
    """Progress bar, files and trackers."""
    settings = {
        f"{section}/{key}": value if isinstance(value, int | float | str) else str(value)
        for section, values in asdict(config).items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
    accelerator.init_trackers("tensorboard", config=settings)
    return Reporter(
        accelerator,
        folder,
        every=config.output.logging_steps,
        first_step=state.step,
        last_step=last_step,
        pictures=batches.pictures,
        global_batch=batches.layout.global_batch,
    )


def build_checkpoints(
    config: Config, accelerator: Accelerator, folder: Path, guard: Guard
) -> Checkpoints:
    """What saves, after the guard has confirmed the last gradient."""
    return Checkpoints(
        accelerator,
        folder / "checkpoints",
        config.network.name,
        every=config.output.checkpointing_steps,
        limit=config.output.checkpoints_total_limit,
        confirm=guard.confirm,
    )


def build_problem(config: Config, base: BaseModel, batch: Batch) -> objective.Noised:
    """Noise, timesteps, target and weights of a micro-batch, on the device."""
    seed = config.training.seed
    return objective.noised(
        batch.latents,
        [rng.generator(seed, "noise", batch.step, slot) for slot in batch.slots],
        base.alphas_cumprod,
        base.prediction,
        snr_gamma=config.objective.snr_gamma,
        noise_offset=config.objective.noise_offset,
    ).to(base.device)
