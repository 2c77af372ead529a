"""Where training starts from: a file with its optimizer state, or a new hypernetwork."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hn import __version__
from hn.build.models import check_inpainting
from hn.build.structure import ANY_DIM, check_file, expected, layers_of, structure_of
from hn.config import Config, ModelConfig, NetworkConfig
from hn.data.tally import Tally
from hn.diffusion.attending.kernels import choose_kernel
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.text_encoder import check_clip_skip
from hn.diffusion.loading.layout import is_single_file
from hn.diffusion.loading.noising import check_zero_terminal_snr
from hn.diffusion.loading.outline import Outline
from hn.diffusion.objective.problem import check_range
from hn.errors import OptionError, shown
from hn.network import families, files, portability, sidecar
from hn.network.contents import Contents
from hn.network.description import HypernetworkConfig
from hn.network.module import Hypernetwork
from hn.network.remote import locate
from hn.network.sidecar import Sidecar
from hn.training import optimizers, schedule
from hn.training.keeping import adoption, artifacts


@dataclass(frozen=True)
class Start:
    """The hypernetwork to go on from and the optimizer state beside it; neither for a new one.

    `base_hash`: short hash of the base model's single file, if there is one; `content` that of the
    file to go on from.
    """

    hypernetwork: Hypernetwork | None = None
    optimizer: Sidecar | None = None
    base_hash: str | None = None
    content: str | None = None


def build_start(config: Config, accelerator: Accelerator, tally: Tally | None = None) -> Start:
    """Read the file to go on from, or try the architecture.

    What is odd with the file goes into the `tally`.
    """
    if (remark := optimizers.remark(config.optimizer)) is not None:
        accelerator.print(remark)
    start = _read(config, tally or Tally())
    if start.hypernetwork is None:
        Hypernetwork.drawn(layers_of(config.network), config.training.seed)
    else:
        step, beside = start.hypernetwork.provenance.step, start.optimizer is not None
        accelerator.print(
            f"going on from {config.network.hypernetwork_path} at step {step}, sha256 "
            f"{start.content}{', with the optimizer state beside it' * beside}"
        )
    return start


def tell_hosts(
    config: Config, accelerator: Accelerator, start: Start, outline: Outline | None
) -> None:
    """Say what each host will make of the result.

    Before pictures and base model, so that nobody trains for hours what their host cannot run.
    """
    network, known = config.network, () if outline is None else outline.dims
    # The text's width decides which hosts know the base model; all of them are large to make.
    text = tuple(dim for dim in known if dim == families.XL.text)
    described = layers_of(network, text or (ANY_DIM,))
    if network.train_blocks or network.per_block:
        described = expected(network, outline)
    trial = start.hypernetwork or Hypernetwork.drawn(described, config.training.seed)
    verdicts = portability.in_words(portability.judge(artifacts.shared(trial)))
    accelerator.print(f"where {config.network.name}.pt will run:\n{portability.as_lines(verdicts)}")


def build_hypernetwork(config: Config, base: BaseModel, start: Start) -> Hypernetwork:
    """A new hypernetwork, or the one to go on from; refused if the UNet lacks one of its widths or
    blocks.
    """
    network = config.network
    hypernetwork = start.hypernetwork
    if hypernetwork is None:
        described = structure_of(network, base.unet, base.name)
        hypernetwork = Hypernetwork.drawn(described, config.training.seed)
    else:
        check_file(hypernetwork.config, base.unet, base.name)
    file = _single_file(config.model)
    hypernetwork.describe(
        name=network.name,
        sd_checkpoint=start.base_hash,
        sd_checkpoint_name=Path(base.name).name if file is None else file.stem,
        optional_info=_info(config),
    )
    return hypernetwork


def check_fit(config: Config, outline: Outline, start: Start) -> None:
    """Hold settings and the file to go on from against a base model that is not loaded yet.

    Raises `ModelError` or `OptionError`, as its parts would once they are.
    """
    if start.hypernetwork is None:
        structure_of(config.network, outline.unet, outline.name)
    else:
        source = f" of {config.network.hypernetwork_path}"
        check_file(start.hypernetwork.config, outline.unet, outline.name, source)
    check_clip_skip(config.model.clip_skip, outline.text_layers)
    check_range(config.objective, outline.timesteps)
    check_inpainting(config, inpainting=outline.inpainting)
    if config.model.zero_terminal_snr:
        check_zero_terminal_snr(config.model.prediction_type or outline.prediction, asked=True)
    if config.model.enable_xformers_memory_efficient_attention:
        choose_kernel(None, "xformers")


def build_optimizer(
    config: Config, accelerator: Accelerator, hypernetwork: Hypernetwork, start: Start, rate: float
) -> torch.optim.Optimizer:
    """The optimizer, with the adopted state if there is one."""
    scaled = accelerator.scaler is not None
    optimizer = optimizers.build_optimizer(hypernetwork, config.optimizer, rate, scaled=scaled)
    if start.optimizer is not None:
        adoption.adopt(optimizer, start.optimizer)
    return optimizer


def _read(config: Config, tally: Tally) -> Start:
    """Raises `ModelError` for a file that cannot be read, `OptionError` if it does not go with the
    settings.
    """
    network, file = config.network, _single_file(config.model)
    base_hash = None if file is None else sidecar.short_hash(file)
    if network.hypernetwork_path is None:
        return Start(base_hash=base_hash)
    path = locate(network.hypernetwork_path)
    content = sidecar.short_hash(path) if path.is_file() else None
    hypernetwork = files.load(path)
    if files.is_safetensors(path) != (path.suffix == ".safetensors"):
        words = "of another kind than its ending says, read all the same"
        tally.add("hypernetwork_path", "misnamed", words, [path.name])
    _check_settings(config, hypernetwork, path)
    if network.dropout_structure:
        contents = Contents.of(hypernetwork).with_dropout(network.dropout_structure)
        hypernetwork = contents.build()
    if config.output.resume_from_checkpoint is not None:
        # the checkpoint brings the optimizer's state
        return Start(hypernetwork, None, base_hash, content)
    name = "AdamW8bit" if config.optimizer.use_8bit_adam else config.optimizer.optimizer
    found = adoption.find(path, network.adopt_optimizer, name)
    return Start(hypernetwork, found, base_hash, content)


def _single_file(model: ModelConfig) -> Path | None:
    """The base model's single file, whose hash the web UI knows it by."""
    if model.sd_checkpoint_file is not None:
        return Path(model.sd_checkpoint_file)
    name = model.pretrained_model_name_or_path
    return Path(name) if is_single_file(name) else None


def _check_settings(config: Config, hypernetwork: Hypernetwork, path: Path) -> None:
    """Refuse a file that is trained enough, and settings that it would override."""
    network, steps = config.network, config.training.max_train_steps
    step = hypernetwork.provenance.step
    if step >= steps:
        raise OptionError(
            f"max_train_steps is {steps}, but {path} is at step {step} already; steps are counted "
            "over all runs"
        )
    if config.output.save_optimizer_state and not hypernetwork.config.is_everywhere:
        raise OptionError(
            f"save_optimizer_state writes what goes on in the web UI, but {path} is "
            f"{hypernetwork.config.reach}: leave it out"
        )
    for name in ("learning_rate", "clip_grad_value"):
        stages = getattr(config.optimizer, name)
        schedule.parse(stages, steps, start_step=step, setting=name)  # refuses what is over
    of_file = _settings_of(hypernetwork.config)
    for name, found in of_file.items():
        asked = getattr(network, name)
        if asked not in (getattr(NetworkConfig(), name), found):
            raise OptionError(
                f"{name} is {shown(asked)}, but {path} has {shown(found)}, which stays: leave "
                f"{name} out, or train a new hypernetwork without hypernetwork_path"
            )


def _settings_of(described: HypernetworkConfig) -> dict[str, Any]:
    """The settings that a file decides, as it has them."""
    names = ("dims", "layer_structure", "activation_func", "is_layer_norm", "activate_output")
    return {
        **{name: getattr(described, name) for name in (*names, "sides")},
        "train_blocks": described.blocks,
        "per_block": bool(described.block_dims),
    }


def _info(config: Config) -> str:
    """How it was trained, in a line that hosts show and that names no path."""
    training, optimizer = config.training, config.optimizer
    return (
        f"trained with hn {__version__}: {optimizer.optimizer}, rate {optimizer.learning_rate}, "
        f"batch {training.train_batch_size} x {training.gradient_accumulation_steps}, seed "
        f"{training.seed}{', zero_terminal_snr' * config.model.zero_terminal_snr}{_changed(config)}"
    )


def _changed(config: Config) -> str:
    """The settings of the objective and of averages that are not as they are by default."""
    changed = {
        name: value
        for section in (config.objective, config.training)
        for name, value in asdict(section).items()
        if section is config.objective or name in ("use_ema", "ema_decay")
        if value != getattr(type(section)(), name)
    }
    return "".join(f", {name} {value}" for name, value in changed.items())
