"""Where training starts from: a file with its optimizer state, or a new hypernetwork."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from hn import __version__
from hn.config import Config, NetworkConfig
from hn.diffusion.base_model import BaseModel
from hn.errors import ModelError, OptionError
from hn.network import files, portability, sidecar
from hn.network.contents import Contents
from hn.network.module import Hypernetwork
from hn.network.sidecar import Sidecar
from hn.training import adoption, artifacts, optimizers

ANY_DIM = 320  # what hosts make of an architecture does not depend on its widths


@dataclass(frozen=True)
class Start:
    """The file to go on from and the optimizer state beside it; neither for a new hypernetwork."""

    contents: Contents | None = None
    optimizer: Sidecar | None = None


def build_start(config: Config, accelerator: Accelerator) -> Start:
    """Read the file to go on from, or try the architecture; say what each host will make of it.

    Before pictures and base model, so that nobody trains for hours what their host cannot run.
    """
    start = _read(config)
    trial = (
        _create(config.network, (ANY_DIM,), config.training.seed)
        if start.contents is None
        else start.contents.build()
    )
    verdicts = portability.in_words(portability.judge(artifacts.shared(trial)))
    accelerator.print(f"where {config.network.name}.pt will run:\n{portability.as_lines(verdicts)}")
    return start


def build_hypernetwork(config: Config, base: BaseModel, start: Start) -> Hypernetwork:
    """A new hypernetwork, or the one to go on from; refused if the UNet lacks one of its widths."""
    network = config.network
    hypernetwork = (
        _create(network, network.dims or base.dims, config.training.seed)
        if start.contents is None
        else start.contents.build()
    )
    unknown = [dim for dim in hypernetwork.dims if dim not in base.dims]
    if unknown:
        raise ModelError(
            f"dims {unknown} are not context widths of {base.name}; it has {base.dims}"
        )
    file = config.model.sd_checkpoint_file
    hypernetwork.describe(
        name=network.name,
        sd_checkpoint=None if file is None else sidecar.short_hash(Path(file)),
        sd_checkpoint_name=Path(base.name).name if file is None else Path(file).stem,
        optional_info=_info(config),
    )
    return hypernetwork


def build_optimizer(
    config: Config, hypernetwork: Hypernetwork, start: Start, rate: float
) -> torch.optim.Optimizer:
    """The optimizer, with the adopted state if there is one."""
    optimizer = optimizers.build_optimizer(hypernetwork.parameters(), config.optimizer, rate)
    if start.optimizer is not None:
        adoption.adopt(optimizer, start.optimizer)
    return optimizer


def _read(config: Config) -> Start:
    """Raises `ModelError` for a file that cannot be read, `OptionError` if it is trained enough."""
    network, steps = config.network, config.training.max_train_steps
    if network.hypernetwork_path is None:
        return Start()
    path = Path(network.hypernetwork_path)
    contents = files.read(path)
    if contents.provenance.step >= steps:
        raise OptionError(
            f"max_train_steps is {steps}, but {path} is at step {contents.provenance.step} "
            "already; steps are counted over all runs"
        )
    if network.dropout_structure:
        contents = contents.with_dropout(network.dropout_structure)
    if config.output.resume_from_checkpoint is not None:
        return Start(contents)  # the checkpoint brings the optimizer's state
    name = "AdamW8bit" if config.optimizer.use_8bit_adam else config.optimizer.optimizer
    return Start(contents, adoption.find(path, network.adopt_optimizer, name))


def _create(network: NetworkConfig, dims: tuple[int, ...], seed: int) -> Hypernetwork:
    return Hypernetwork.create(
        dims,
        layer_structure=network.layer_structure,
        activation_func=network.activation_func,
        weight_initialization=network.weight_initialization,
        is_layer_norm=network.is_layer_norm,
        activate_output=network.activate_output,
        dropout_structure=network.dropout_structure,
        seed=seed,
    )


def _info(config: Config) -> str:
    """How it was trained, in a line that hosts show and that names no path."""
    training, optimizer = config.training, config.optimizer
    return (
        f"trained with hn {__version__}: {optimizer.optimizer}, rate {optimizer.learning_rate}, "
        f"batch {training.train_batch_size} x {training.gradient_accumulation_steps}, seed "
        f"{training.seed}"
    )
