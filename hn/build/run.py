"""What the loop keeps and reports."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hn import cli
from hn.config import Config
from hn.data.batches import Batches
from hn.data.cache import changes
from hn.data.streaming.batches import StreamedBatches
from hn.data.words.captions import template_identity
from hn.errors import OptionError
from hn.hub.publisher import Publisher
from hn.hub.runs import check_run_destination, push_run
from hn.limits.learning import is_schedule_free
from hn.network.module import Hypernetwork
from hn.training import schedule
from hn.training.averages import Averages, Ema, ScheduleFree, View
from hn.training.checkpoint import Checkpoints, find, path_of, restore
from hn.training.guard import Guard
from hn.training.reporter import Reporter
from hn.training.state import TrainingState
from hn.training.status import Status
from hn.training.trackers import Settings, build_trackers


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


def build_guard(
    config: Config,
    accelerator: Accelerator,
    hypernetwork: Hypernetwork,
    clip_bounds: schedule.Schedule,
) -> Guard:
    """What keeps gradient and weights in bounds."""
    optimizer = config.optimizer
    return Guard(
        accelerator,
        hypernetwork,
        optimizer.clip_grad_mode,
        clip_bounds,
        max_weight_norm=optimizer.max_weight_norm,
    )


def build_averages(
    config: Config, hypernetwork: Hypernetwork, optimizer: torch.optim.Optimizer
) -> Averages:
    """The weights to look at: those trained, or what the optimizer makes of them; their average."""
    if is_schedule_free(config.optimizer.optimizer):
        return Averages([ScheduleFree(hypernetwork, optimizer)])
    if config.training.use_ema:
        return Averages([View(), Ema(hypernetwork, config.training.ema_decay)])
    return Averages()


def build_state(
    config: Config,
    accelerator: Accelerator,
    hypernetwork: Hypernetwork,
    optimizer: torch.optim.Optimizer,
    batches: Batches | StreamedBatches,
    status: Status,
) -> TrainingState:
    """The state at the start, or that of the checkpoint to resume from."""
    state = TrainingState(
        hypernetwork,
        optimizer,
        hypernetwork.provenance.step,
        accelerator.scaler,
        fingerprint=_fingerprint(config, accelerator, hypernetwork, batches),
        stream=batches if isinstance(batches, StreamedBatches) else None,
        averages=build_averages(config, hypernetwork, optimizer),
    )
    which = config.output.resume_from_checkpoint
    if which is not None:
        path = find(status.folder / "checkpoints", which)
        with _changes_named(status.folder, batches):
            restore(path, state, accelerator.process_index)
        if config.output.keep_best and state.best.step is not None:
            state.best.forget_unsaved(path_of(status.folder / "checkpoints", state.best.step))
        accelerator.print(f"resumed from {path} at step {state.step}")
    elif isinstance(batches, Batches) and accelerator.is_main_process:
        changes.keep(batches.index, status.folder)
    status.state = state
    return state


def _fingerprint(
    config: Config,
    accelerator: Accelerator,
    hypernetwork: Hypernetwork,
    batches: Batches | StreamedBatches,
) -> dict[str, Any]:
    """What makes the run what it is. Rates, bounds and the number of steps may change."""
    training, data = config.training, config.data
    return {
        "base_model": Path(config.model.pretrained_model_name_or_path).name,
        "prompt_syntax": config.model.prompt_syntax,
        "clip_skip": config.model.clip_skip,
        "structure": asdict(hypernetwork.config),
        "pictures": batches.digest,
        "global_batch": training.train_batch_size
        * training.gradient_accumulation_steps
        * accelerator.num_processes,
        "seed": training.seed,
        **({"quantize_base": base} if (base := config.memory.quantize_base) != "none" else {}),
        **({"processes": accelerator.num_processes} if data.streaming else {}),
        # of buckets, where it says how many pictures of one size come together
        **({"train_batch_size": training.train_batch_size} if data.resize_mode == "bucket" else {}),
        **{
            key: value
            for key, value in asdict(data).items()
            if not key.endswith(("_dir", "_folders", "_name", "_column"))
            if key != "vae_batch_size"
        },
        **asdict(config.objective),
        # of the optimizer, what its saved state holds: that would win without a word
        **{
            key: getattr(config.optimizer, key)
            for key in ("optimizer", "optimizer_args", "use_8bit_adam", "width_learning_rates")
        },
        "use_ema": training.use_ema,
        "template": template_identity(data.template),
    }


@contextmanager
def _changes_named(folder: Path, batches: Batches | StreamedBatches) -> Iterator[None]:
    """Where a checkpoint is refused, say which of the pictures are not those of the run."""
    try:
        yield
    except OptionError as error:
        if isinstance(batches, StreamedBatches) or "  pictures: " not in str(error):
            raise
        found = [f"of the pictures, {line}" for line in changes.changes(folder, batches.index)]
        raise OptionError("\n  ".join([str(error), *found])) from error


def build_reporter(
    config: Config,
    accelerator: Accelerator,
    folder: Path,
    state: TrainingState,
    batches: Batches | StreamedBatches,
    guard: Guard,
    last_step: int,
) -> Reporter:
    """Progress bar, files and trackers."""
    counts = batches.counts if isinstance(batches, StreamedBatches) else dict
    if accelerator.is_main_process:
        names, run = config.output.report_to, config.network.name
        accelerator.log_with += build_trackers(names, folder, run, state.step)
        accelerator.init_trackers(run, config=_settings(folder))
    return Reporter(
        accelerator,
        folder,
        every=config.output.logging_steps,
        first_step=state.step,
        last_step=last_step,
        pictures=batches.pictures,
        global_batch=batches.layout.global_batch,
        counts=lambda: {**counts(), **guard.counts()},
    )


def _settings(folder: Path) -> Settings:
    """What `config.toml` has and no more: nothing that was looked up since, such as full paths."""
    return {
        f"{section}/{name}": value if isinstance(value, int | float | str) else str(value)
        for section, values in asdict(cli.read_toml(folder / "config.toml")).items()
        if isinstance(values, dict)
        for name, value in values.items()
        if value is not None
    }


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
        keep_best=config.output.keep_best,
        optimizer_name=config.optimizer.optimizer if config.output.save_optimizer_state else None,
        confirm=guard.confirm,
    )


def build_publisher(config: Config, accelerator: Accelerator, status: Status) -> Publisher:
    """What publishes, on the main process, if it is wanted.

    Raises `OptionError` or `HubError` where it could not, before anything is computed.
    """
    hub = config.hub
    if not hub.push_to_hub or not accelerator.is_main_process:
        return Publisher()
    accelerator.print(f"publishing to {check_run_destination(hub)}")
    publisher = Publisher(
        lambda stopped: push_run(status.folder, hub, stopped=stopped),
        folder=status.folder,
        every=0 if hub.hub_strategy == "end" else config.output.checkpointing_steps,
    )
    status.notes = lambda: {"hub": publisher.notes}
    return publisher
