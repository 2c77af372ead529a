"""What comes before the objects of a run: its processes, its folder, the embedded demo."""

import fcntl
import importlib.util
import os
import re
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import PIL
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from hn import cli, demo
from hn.config import Config, DataConfig, MemoryConfig
from hn.data.cache.caching import STALLED, Cache
from hn.data.cache.index import Index
from hn.errors import DataError, HubError, OptionError, shown
from hn.hub import fetch_cache
from hn.hub.checkpoints import REMOTE, fetch_checkpoint
from hn.storage import existing_parent, prove_writable, write_bytes
from hn.training.keeping.checkpoint import list_checkpoints
from hn.training.telling.status import Status
from hn.training.telling.trackers import check_installed

LOCK = ".lock"
LEAST = {  # version and reason
    "torch": ("2.10", "reading a file could corrupt memory (CVE-2026-24747)"),
    "pillow": ("12.3", "reading a picture could take all memory, or more than its bytes"),
}


def run_folder(config: Config) -> Path:
    """Where everything of a run lies."""
    return Path(config.output.output_dir) / config.network.name


def build_accelerator(config: Config) -> Accelerator:
    """Accelerate, checked against what was asked for."""
    training = config.training
    check_versions()
    spare_lookups()
    check_installed(config.output.report_to)
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        os.environ.pop(variable, None)  # `hn.limits.launching` has made settings of it
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        cpu=not torch.accelerator.is_available(),
        # As long as others may rightly wait in any phase; `Watch` is quicker where one hangs.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=STALLED))],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise OptionError("mixed_precision fp16 needs a GPU; on a CPU use bf16 or no")
    if training.expect_world_size not in (None, accelerator.num_processes):
        raise OptionError(
            f"expect_world_size is {training.expect_world_size}, but {accelerator.num_processes} "
            "processes run. On CPUs launch with torchrun --nproc_per_node, since accelerate "
            "launch --cpu starts one only."
        )
    return accelerator


def spare_lookups() -> None:
    """Remember that there is no lomo: accelerate looks for it on the disk twice a step (0.3 ms)."""
    if importlib.util.find_spec("lomo_optim") is None:
        sys.modules["lomo_optim"] = None  # type: ignore[assignment]  # what Python takes for absent


def check_versions() -> None:
    """Refuse libraries whose readers have known holes: strangers' files are opened with them.

    Raises `OptionError`.
    """
    found = {"torch": str(torch.__version__), "pillow": PIL.__version__}
    for package, (least, why) in LEAST.items():
        if _numbers(found[package]) < _numbers(least):
            raise OptionError(
                f"{package} {found[package]} is too old: {why}. Install at least {least}: pip "
                f"install '{package}>={least}'"
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def build_run_folder(config: Config, accelerator: Accelerator) -> Status:
    """The run's folder, proven to be writable and held, and its status; the main process decides.

    A dry run leaves nothing there.
    """
    folder, dry, lock = run_folder(config), config.output.dry_run, None
    if accelerator.is_main_process:
        finished = [folder / f"{config.network.name}{ending}" for ending in (".pt", ".safetensors")]
        used = [*list_checkpoints(folder / "checkpoints"), *filter(Path.exists, finished)]
        if used and _resumed(config, folder) is None:
            raise OptionError(
                f"{folder} holds a run already ({used[0].name}). Go on with it: "
                "--resume_from_checkpoint latest; or choose another --name or --output_dir; or "
                "remove the folder."
            )
        prove_writable(existing_parent(folder) if dry else folder, "output_dir")
        if not dry:
            lock = hold(folder)
            saved = replace(config, output=replace(config.output, resume_from_checkpoint=None))
            write_bytes(folder / "config.toml", cli.to_toml(saved).encode())
    accelerator.wait_for_everyone()
    return Status(folder, main_process=accelerator.is_main_process and not dry, lock=lock)


def hold(folder: Path) -> int | None:
    """Keep other runs out of a folder until what is returned is closed, or the process ends.

    Raises `OptionError` if one is at work there. Where the disk knows no locks, none is kept out.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OptionError(
            f"another run is at work in {folder}. Wait for it, or choose another --name or "
            "--output_dir."
        ) from error
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def resolve(config: Config, accelerator: Accelerator, folder: Path) -> Config:
    """Put in what the settings leave to the run: the embedded demo, where it is named; the run's
    own folder for a cache; the settings that shaped a cache to train from; a checkpoint of the hub.

    Raises `DataError` for a cache that cannot be used, `OptionError` if settings contradict it,
    `HubError` or `ModelError` for a checkpoint that cannot be had.
    """
    config = _with_demo(config, accelerator, folder)
    which = _resumed(config, folder)
    if which is not None and which.startswith(REMOTE):
        which = str(fetch_checkpoint(which))
    config = replace(config, output=replace(config.output, resume_from_checkpoint=which))
    cache = config.data.latent_cache_dir or str(folder / "cache")
    config = replace(config, data=replace(config.data, latent_cache_dir=cache))
    return config if config.data.cached_data_dir is None else _with_cached_data(config)


def reopen(run: Path, base_name: str | None = None) -> tuple[Config, Config, Accelerator]:
    """The settings of a run that is over: as written, and resolved for this machine and this use,
    with its own base model or another one.

    Its own cache, if it has one, stands for its pictures, whatever became of these. Raises
    `OptionError` for what is no run.
    """
    if not (run / "config.toml").is_file():
        raise OptionError(f"{run} is not the folder of a run: it has no config.toml")
    written = cli.read_toml(run / "config.toml")
    training = replace(written.training, expect_world_size=None, gradient_checkpointing=False)
    if not torch.accelerator.is_available():
        training = replace(training, mixed_precision="no")
    model, data = replace(written.model, shard_base_model=False), written.data
    if base_name is not None:
        changed = {"pretrained_model_name_or_path": base_name, "revision": None, "variant": None}
        model = replace(model, **changed)
    own = data.latent_cache_dir is None and data.cached_data_dir is None
    if own:
        none = dict.fromkeys(("train_data_dir", "train_folders", "dataset_name"))
        data = replace(data, **none, validation_data_dir=None, streaming=False)
    output = replace(written.output, output_dir=str(run.parent), report_to=("none",))
    changed = {"training": training, "model": model, "data": data, "output": output}
    config = replace(written, **changed, memory=MemoryConfig())
    accelerator = build_accelerator(config)
    config = resolve(config, accelerator, run)
    if own:
        config = replace(
            config, data=replace(config.data, cached_data_dir=config.data.latent_cache_dir)
        )
    return written, config, accelerator


def _resumed(config: Config, folder: Path) -> str | None:
    """The checkpoint to go on from: "auto" is the latest if there are any, valid or not."""
    which = config.output.resume_from_checkpoint
    if which != "auto":
        return which
    return "latest" if list_checkpoints(folder / "checkpoints") else None


def _with_cached_data(config: Config) -> Config:
    data, default = config.data, DataConfig()
    assert data.cached_data_dir is not None
    folder = Path(data.cached_data_dir)
    if not folder.exists():
        folder = _fetched(data.cached_data_dir)
    settings = Index.open(Cache(folder).index_path("train")).about.settings
    data = replace(data, cached_data_dir=str(folder))
    for name, found in settings.items():
        asked, value = getattr(data, name), tuple(found) if isinstance(found, list) else found
        if asked not in (getattr(default, name), value):
            raise OptionError(
                f"{name} is {shown(asked)}, but {folder} was made with "
                f"{shown(value)}: leave {name} out, or make another cache"
            )
        data = replace(data, **{name: value})
    return replace(config, data=data)


def _fetched(name: str) -> Path:
    """The cache of a repository. Raises `OptionError`, `DataError` or `HubError`."""
    try:
        return fetch_cache(name)
    except (OptionError, DataError, HubError) as error:
        raise type(error)(
            f"cached_data_dir {shown(name)} is no folder here, and as a repository: {error}"
        ) from error


def _with_demo(config: Config, accelerator: Accelerator, folder: Path) -> Config:
    """Put the embedded model and pictures where the settings say "demo"."""
    model, data = config.model, config.data
    if model.pretrained_model_name_or_path == demo.NAME:
        model = replace(model, pretrained_model_name_or_path=str(demo.MODEL))
    if data.train_data_dir == demo.NAME:
        if accelerator.is_main_process:
            demo.write_pictures(folder / "pictures")
        accelerator.wait_for_everyone()
        train_dir, held_out_dir = folder / "pictures" / "train", folder / "pictures" / "held-out"
        held_out = (
            str(held_out_dir) if data.validation_data_dir == demo.NAME else data.validation_data_dir
        )
        data = replace(data, train_data_dir=str(train_dir), validation_data_dir=held_out)
    return replace(config, model=model, data=data)
