"""Everything that can be wrong, found before a model is loaded, and listed together."""

import shutil
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from hn import errors
from hn.build.memory import build_plan
from hn.build.models import check_base_model, check_canvas
from hn.build.needs import checkpoint_bytes, meta_hypernetwork
from hn.build.pictures import Datasets, build_datasets
from hn.build.run import build_publisher, build_schedules, settings_fingerprint
from hn.build.start import Start, build_start, check_fit, tell_hosts
from hn.config import Config
from hn.data.tally import Tally
from hn.diffusion.loading.layout import is_single_file
from hn.diffusion.loading.outline import Outline
from hn.diffusion.memory.plan import Plan
from hn.errors import HubError, OptionError, StorageError, UserError, listed
from hn.hub.publisher import Publisher
from hn.storage import existing_parent
from hn.training import zero
from hn.training.keeping.checkpoint import check_fingerprint, find, read_fingerprint
from hn.training.optimizers import build_optimizer
from hn.training.schedule import Schedule
from hn.training.telling.status import Status

P = ParamSpec("P")
T = TypeVar("T")
MIB = 2**20
ANY_RATE = 1e-3  # for a first look at an optimizer
CHECKPOINTS = 3  # that must fit on the disk: the last two, and the one being written


@dataclass(frozen=True)
class Ready:
    """What a run has before its models are loaded."""

    publisher: Publisher
    rates: Schedule
    clip_bounds: Schedule
    start: Start
    datasets: Datasets
    outline: Outline | None  # None where the hub does not tell
    plan: Plan | None  # how memory is saved, where that was for us to choose


def build_ready(config: Config, accelerator: Accelerator, status: Status) -> Ready:
    """Check settings, files, pictures and disk. What is odd is said, and noted in the status.

    Raises a `UserError` of the kind of the first fault, which lists all of them, on all processes.
    """
    tally, attempts = Tally(), _Attempts()
    status.found = tally
    publisher = attempts(build_publisher, config, accelerator, status)
    schedules = attempts(build_schedules, config)
    attempts(_check_checkpoint, config, accelerator.num_processes, status.folder)
    start = attempts(build_start, config, accelerator, tally)
    outline = None
    if attempts.succeeded(check_base_model, config):
        outline = attempts(build_outline, config)
    if start is not None:
        attempts(tell_hosts, config, accelerator, start, outline)
        attempts(_check_fit, config, outline, start)
        attempts(_check_disk, config, outline, start, status.folder)
    network = None if start is None else start.hypernetwork
    attempts(check_canvas, config)
    if config.optimizer.shard_optimizer:
        attempts(zero.check, accelerator)
    plan = attempts(build_plan, config, accelerator, outline, network)
    datasets = attempts(build_datasets, config, accelerator, tally)
    attempts.conclude(accelerator)
    assert publisher is not None
    assert schedules is not None
    assert start is not None
    assert datasets is not None
    rates, clip_bounds = schedules
    return Ready(publisher, rates, clip_bounds, start, datasets, outline, plan)


class _Attempts:
    """Runs checks one after the other, whatever the others raised."""

    def __init__(self) -> None:
        self._errors: list[UserError] = []

    def __call__(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `act` returns; None if it raised what a user can mend."""
        try:
            return act(*args, **kwargs)
        except UserError as error:
            self._errors.append(error)
            return None

    def succeeded(self, act: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether `act` raised nothing."""
        before = len(self._errors)
        self(act, *args, **kwargs)
        return len(self._errors) == before

    def conclude(self, accelerator: Accelerator) -> None:
        """Raise what was collected on any of the processes, once each."""
        own = [(type(error).__name__, str(error)) for error in self._errors]
        told = own if accelerator.num_processes == 1 else gather_object(own)
        faults = list(dict.fromkeys(told))
        if not faults:
            return
        kind, first = faults[0]
        words = [text for _, text in faults]
        text = first if len(faults) == 1 else listed(f"{len(faults)} things are wrong", words)
        raise getattr(errors, kind)(text)


def build_outline(config: Config) -> Outline | None:
    """None where the hub does not answer: the model may have been fetched before. Nor of a .ckpt,
    which would have to be read whole.
    """
    model = config.model
    name = model.pretrained_model_name_or_path
    if is_single_file(name) and not name.endswith(".safetensors"):
        return None
    with suppress(HubError):
        return Outline.read(name, model.revision, model.prediction_type)
    return None


def _check_checkpoint(config: Config, processes: int, folder: Path) -> None:
    """Refuse to resume from nothing, or with settings of another run.

    Raises `ModelError` or `OptionError`; what is passed over is said when it is restored.
    """
    which = config.output.resume_from_checkpoint
    if which is None:
        return
    with redirect_stdout(StringIO()):
        path, _ = find(folder / "checkpoints", which)
    saved, now = read_fingerprint(path), settings_fingerprint(config, processes)
    try:
        check_fingerprint(
            {key: saved.get(key) for key in now}, now, path, config.output.allow_change
        )
    except OptionError as error:
        if saved.get("global_batch") == now["global_batch"]:
            raise
        raise OptionError(f"{error}\n  {_global_batch(saved, config, processes)}") from error


def _global_batch(saved: dict[str, Any], config: Config, processes: int) -> str:
    """What makes the global batch that it was, as near as can be to what was asked for."""
    wanted, asked = saved.get("global_batch"), config.training.train_batch_size
    if not isinstance(wanted, int) or wanted % processes:
        return f"a global batch of {wanted} cannot be dealt out to {processes} processes"
    each = wanted // processes
    size = min((n for n in range(1, each + 1) if each % n == 0), key=lambda n: abs(n - asked))
    return (
        f"with {processes} processes that is train_batch_size {size} with "
        f"gradient_accumulation_steps {each // size}"
    )


def _check_fit(config: Config, outline: Outline | None, start: Start) -> None:
    """Hold settings against the base model, and try the optimizer on weights without memory."""
    if outline is not None:
        check_fit(config, outline, start)
    build_optimizer(meta_hypernetwork(config, outline, start), config.optimizer, ANY_RATE)


def _check_disk(config: Config, outline: Outline | None, start: Start, folder: Path) -> None:
    """Raises `StorageError` for a disk that is too small."""
    needed = checkpoint_bytes(config, meta_hypernetwork(config, outline, start))
    free = shutil.disk_usage(existing_parent(folder)).free
    if free < CHECKPOINTS * needed:
        raise StorageError(
            f"output_dir '{folder}' is on a disk with {free / MIB:.0f} MiB left; {CHECKPOINTS} "
            f"checkpoints of this run take {CHECKPOINTS * needed / MIB:.1f} MiB. Free some space, "
            "or choose another output_dir."
        )
