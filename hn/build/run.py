"""What the loop keeps and reports."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hn import cli
from hn.config import Config, DataConfig
from hn.data.batches import Batches
from hn.data.cache import changes
from hn.data.streaming.batches import StreamedBatches
from hn.data.tally import Tally
from hn.data.words.captions import template_identity
from hn.errors import OptionError
from hn.hub.publisher import Publisher
from hn.hub.runs import check_run_destination, push_run
from hn.limits.learning import is_schedule_free
from hn.limits.saving import OF_DATA, OF_INPAINTING, OF_OPTIMIZER
from hn.network.module import Hypernetwork
from hn.training import schedule
from hn.training.averages import Averages, Ema, ScheduleFree, View
from hn.training.gradients import Gradients
from hn.training.keeping.checkpoint import find, path_of, restore, tidy
from hn.training.keeping.recovery import Recovery
from hn.training.keeping.retention import Retention
from hn.training.keeping.saving import Checkpoints
from hn.training.keeping.snapshot import Snapshot
from hn.training.state import TrainingState
from hn.training.telling.reporter import Reporter
from hn.training.telling.status import Status
from hn.training.telling.trackers import Settings, build_trackers
from hn.training.watching.guard import Guard


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
    gradients: Gradients,
    clip_bounds: schedule.Schedule,
    batches: Batches | StreamedBatches,
    last_step: int,
) -> Guard:
    """What keeps gradient and weights in bounds."""
    optimizer = config.optimizer
    intervals = config.output.checkpointing_steps, config.validation.validation_steps
    return Guard(
        accelerator,
        hypernetwork,
        optimizer.clip_grad_mode,
        clip_bounds,
        max_weight_norm=optimizer.max_weight_norm,
        loss_bound=config.training.loss_bound,
        watched=lambda step: step == last_step or any(it and step % it == 0 for it in intervals),
        names=batches.names,
        gradients=gradients,
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
        may_differ=config.output.allow_change,
        stream=batches if isinstance(batches, StreamedBatches) else None,
        averages=build_averages(config, hypernetwork, optimizer),
    )
    which = config.output.resume_from_checkpoint
    if accelerator.is_main_process:
        tidy(status.folder / "checkpoints")
    accelerator.wait_for_everyone()
    if which is not None:
        path = _find(status, which)
        with _changes_named(status.folder, batches):
            differing = restore(path, state, accelerator.process_index)
        if config.output.keep_best and state.best.step is not None:
            state.best.forget_unsaved(path_of(status.folder / "checkpoints", state.best.step))
        accelerator.print(f"resumed from {path} at step {state.step}")
        if differing:
            accelerator.print("\n".join(["allow_change: other than there is", *differing]))
    elif isinstance(batches, Batches) and accelerator.is_main_process:
        changes.keep(batches.index, status.folder)
    status.state = state
    return state


def _find(status: Status, which: str) -> Path:
    """The checkpoint to go on from; those passed over are named."""
    path, status.rejected = find(status.folder / "checkpoints", which)
    if status.main_process:
        for name, damage in status.rejected.items():
            print(f"{name} is passed over: {damage}")
    return path


def _fingerprint(
    config: Config,
    accelerator: Accelerator,
    hypernetwork: Hypernetwork,
    batches: Batches | StreamedBatches,
) -> dict[str, Any]:
    """What makes the run what it is. Rates, bounds and the number of steps may change."""
    return {
        "structure": hypernetwork.config.as_dict(),
        "pictures": batches.digest,
        **settings_fingerprint(config, accelerator.num_processes),
    }


def settings_fingerprint(config: Config, processes: int) -> dict[str, Any]:
    """What of that the settings say, before anything is loaded."""
    training, data = config.training, config.data
    vae = config.model.pretrained_vae_model_name_or_path
    return {
        "base_model": Path(config.model.pretrained_model_name_or_path).name,
        "vae": None if vae is None else Path(vae).name,
        "prediction_type": config.model.prediction_type,
        "prompt_syntax": config.model.prompt_syntax,
        "clip_skip": config.model.clip_skip,
        "global_batch": training.train_batch_size
        * training.gradient_accumulation_steps
        * processes,
        "seed": training.seed,
        **({"zero_terminal_snr": True} if config.model.zero_terminal_snr else {}),
        **({"quantize_base": base} if (base := config.memory.quantize_base) != "none" else {}),
        **({"processes": processes} if data.streaming else {}),
        # of buckets, where it says how many pictures of one size come together
        **({"train_batch_size": training.train_batch_size} if data.resize_mode == "bucket" else {}),
        **{name: getattr(data, name) for name in OF_DATA},
        **{
            name: value
            for name in OF_INPAINTING
            if (value := getattr(data, name)) != getattr(DataConfig(), name)
        },
        **asdict(config.objective),
        # of the optimizer, what its saved state holds: that would win without a word
        **{name: getattr(config.optimizer, name) for name in OF_OPTIMIZER},
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
    tally: Tally | None = None,
) -> Reporter:
    """Progress bar, files and trackers."""
    counts = batches.counts if isinstance(batches, StreamedBatches) else dict
    if accelerator.is_main_process:
        names, run = config.output.report_to, config.network.name
        accelerator.log_with += build_trackers(names, folder, run, state.step, tally)
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
    """What saves, unless the guard finds the last gradient unsound."""
    return Checkpoints(
        accelerator,
        folder / "checkpoints",
        config.network.name,
        retention=Retention(
            every=config.output.checkpointing_steps,
            limit=config.output.checkpoints_total_limit,
            keep_every=config.output.keep_every,
        ),
        keep_best=config.output.keep_best,
        optimizer_name=config.optimizer.optimizer if config.output.save_optimizer_state else None,
        is_sound=guard.is_sound,
    )


def build_recovery(
    config: Config,
    accelerator: Accelerator,
    guard: Guard,
    checkpoints: Checkpoints,
    reporter: Reporter,
    state: TrainingState,
) -> Recovery:
    """What goes back where training cannot go on."""
    state.health = state.health.of_rate(config.optimizer.learning_rate)
    return Recovery(
        accelerator,
        guard,
        checkpoints,
        reporter,
        Snapshot.take(state),
        limit=config.training.max_rollbacks,
        factor=config.training.rollback_rate_factor,
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
