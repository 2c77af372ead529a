"""Where training starts from: a file with its optimizer state, or a new hypernetwork."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from hn import __version__
from hn.config import Config, ModelConfig, NetworkConfig
from hn.data.tally import Tally
from hn.diffusion.base_model import BaseModel
from hn.diffusion.kernels import choose_kernel
from hn.diffusion.layout import is_single_file
from hn.diffusion.objective.problem import check_range
from hn.diffusion.outline import Outline
from hn.diffusion.text_encoder import check_clip_skip
from hn.errors import ModelError, OptionError, shown
from hn.network import files, portability, sidecar
from hn.network.contents import Contents
from hn.network.description import HypernetworkConfig
from hn.network.module import Hypernetwork
from hn.network.remote import locate
from hn.network.sidecar import Sidecar
from hn.training import optimizers, schedule
from hn.training.keeping import adoption, artifacts

ANY_DIM = 320  # for a first look at an architecture: which widths it gets is not known yet


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
    """Read the file to go on from, or try the architecture; say what each host will make of it.

    Before pictures and base model, so that nobody trains for hours what their host cannot run.
    What is odd with the file goes into the `tally`.
    """
    if (remark := optimizers.remark(config.optimizer)) is not None:
        accelerator.print(remark)
    start = _read(config, tally or Tally())
    if start.hypernetwork is not None:
        step, beside = start.hypernetwork.provenance.step, start.optimizer is not None
        accelerator.print(
            f"going on from {config.network.hypernetwork_path} at step {step}, sha256 "
            f"{start.content}{', with the optimizer state beside it' * beside}"
        )
    trial = start.hypernetwork or new_hypernetwork(
        config.network, config.network.dims or (ANY_DIM,), config.training.seed
    )
    verdicts = portability.in_words(portability.judge(artifacts.shared(trial)))
    accelerator.print(f"where {config.network.name}.pt will run:\n{portability.as_lines(verdicts)}")
    return start


def build_hypernetwork(config: Config, base: BaseModel, start: Start) -> Hypernetwork:
    """A new hypernetwork, or the one to go on from; refused if the UNet lacks one of its widths."""
    network = config.network
    hypernetwork = start.hypernetwork or new_hypernetwork(
        network, network.dims or base.dims, config.training.seed
    )
    _check_dims(hypernetwork.dims, base.dims, base.name)
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
        _check_dims(config.network.dims, outline.dims, outline.name)
    else:
        source = f" of {config.network.hypernetwork_path}"
        _check_dims(start.hypernetwork.dims, outline.dims, outline.name, source)
    check_clip_skip(config.model.clip_skip, outline.text_layers)
    check_range(config.objective, outline.timesteps)
    if config.model.enable_xformers_memory_efficient_attention:
        choose_kernel(None, "xformers")


def _check_dims(dims: tuple[int, ...], known: tuple[int, ...], name: str, source: str = "") -> None:
    unknown = [dim for dim in dims if dim not in known]
    if unknown:
        raise ModelError(
            f"dims {unknown}{source} are not context widths of {name}; it has {known}: leave the "
            "others out, or take the base model that they were made for"
        )


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
    for name in ("learning_rate", "clip_grad_value"):
        stages = getattr(config.optimizer, name)
        schedule.parse(stages, steps, start_step=step, setting=name)  # refuses what is over
    for name in ("dims", "layer_structure", "activation_func", "is_layer_norm", "activate_output"):
        asked, found = getattr(network, name), getattr(hypernetwork.config, name)
        if asked not in (getattr(NetworkConfig(), name), found):
            raise OptionError(
                f"{name} is {shown(asked)}, but {path} has {shown(found)}, which stays: leave "
                f"{name} out, or train a new hypernetwork without hypernetwork_path"
            )


def structure_of(network: NetworkConfig, dims: tuple[int, ...]) -> HypernetworkConfig:
    """What the settings build for these widths. Raises `ModelError` for what cannot be built."""
    return HypernetworkConfig(
        dims=dims,
        layer_structure=network.layer_structure,
        activation_func=network.activation_func,
        weight_initialization=network.weight_initialization,
        is_layer_norm=network.is_layer_norm,
        activate_output=network.activate_output,
        dropout_structure=network.dropout_structure,
    )


def new_hypernetwork(network: NetworkConfig, dims: tuple[int, ...], seed: int) -> Hypernetwork:
    """One of the structure that the settings give, likewise."""
    return Hypernetwork.of(structure_of(network, dims), seed=seed)


def _info(config: Config) -> str:
    """How it was trained, in a line that hosts show and that names no path."""
    training, optimizer = config.training, config.optimizer
    return (
        f"trained with hn {__version__}: {optimizer.optimizer}, rate {optimizer.learning_rate}, "
        f"batch {training.train_batch_size} x {training.gradient_accumulation_steps}, seed "
        f"{training.seed}{_changed(config)}"
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
