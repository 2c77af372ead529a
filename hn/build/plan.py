"""What a run would be and take, in words: `--dry_run`."""

import math

from accelerate import Accelerator
from datasets import Dataset

from hn.build.estimates import estimate, other_stages, step_of
from hn.build.models import DTYPES, plan_of_settings
from hn.build.needs import checkpoint_bytes, latents_bytes, meta_hypernetwork
from hn.build.pictures import build_cache, build_framing
from hn.build.preflight import CHECKPOINTS, Ready
from hn.build.processes import build_layout
from hn.config import Config
from hn.data.cache.index import Index
from hn.data.pictures.bucket_table import bucket_table
from hn.training.schedule import Schedule

MIB = 2**20
WIDTH, HEIGHT = 60, 8  # of the drawn schedule, in characters


def plan_in_words(config: Config, accelerator: Accelerator, ready: Ready) -> str:
    """Steps, pictures, memory, disk and schedule of what was checked."""
    parts = [
        "plan",
        _steps(config, accelerator, ready),
        *_pictures(config, ready),
        *_memory(config, accelerator, ready),
        _disk(config, ready),
        "learning rate",
        *drawn(ready.rates),
        "nothing is wrong, nothing was loaded, nothing was trained",
    ]
    return "\n".join(parts)


def drawn(schedule: Schedule, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """The rates of a schedule over its steps as lines of text, the highest at the top."""
    columns = min(width, schedule.end)
    steps = [column * (schedule.end - 1) // max(1, columns - 1) for column in range(columns)]
    rates = [schedule.rate(step) for step in steps]
    most = max(rates)
    levels = [max(1, math.ceil(rate / most * height)) for rate in rates]
    lines = []
    for level in range(height, 0, -1):
        label = f"{most * level / height:.1e}" if level in (height, height // 2, 1) else ""
        bar = "".join("#" if reached >= level else " " for reached in levels)
        lines.append(f"  {label:>8} |{bar}".rstrip())
    end = f"{schedule.end - 1}"
    return [*lines, f"  {'step':>8} 0{end:>{max(len(end) + 1, columns - 1)}}"]


def _steps(config: Config, accelerator: Accelerator, ready: Ready) -> str:
    layout = build_layout(config, accelerator)
    text = (
        f"  {ready.rates.end} steps of {layout.global_batch} pictures ({layout.batch_size} x "
        f"{layout.accumulation} accumulated x {layout.world_size} processes)"
    )
    entries = _entries(config, ready)
    if entries is None:
        return text + "; how many pictures the stream has is not known"
    epochs = ready.rates.end * layout.global_batch / entries
    return text + f"; {entries} pictures an epoch, so {epochs:.1f} epochs"


def _entries(config: Config, ready: Ready) -> int | None:
    """Pictures of an epoch, each as often as it is repeated."""
    if config.data.cached_data_dir is not None:
        index = Index.open(build_cache(config).index_path("train"))
        return int(index.numbers("repeats").sum(dtype=int))
    train = ready.datasets.train
    return sum(train["repeats"]) if isinstance(train, Dataset) else None


def _pictures(config: Config, ready: Ready) -> list[str]:
    train, sizes = ready.datasets.train, ready.datasets.sizes
    if not isinstance(train, Dataset) or sizes is None:
        return []
    framing, batch_size = build_framing(config), config.training.train_batch_size
    table = bucket_table(train["name"][:], sizes, framing, batch_size)
    return [f"  {line}" for line in table.splitlines()]


def _memory(config: Config, accelerator: Accelerator, ready: Ready) -> list[str]:
    outline, network = ready.outline, ready.start.hypernetwork
    if outline is None:
        return ["memory: the base model's configuration cannot be had, so it is not known"]
    device, processes = accelerator.device, accelerator.num_processes
    step = step_of(
        config,
        outline,
        DTYPES[accelerator.mixed_precision],
        network=None if network is None else network.config,
        processes=processes,
    )
    plan = ready.plan or plan_of_settings(config, outline.unet, device)
    found = estimate(config, outline, step, plan, device=device.type, processes=processes)
    stages = other_stages(config, outline, step, device=device.type)
    return [
        "memory at the peak of a step",
        found.table(),
        *(f"  {name} takes {stage.total / MIB:.0f} MiB" for name, stage in stages.items()),
    ]


def _disk(config: Config, ready: Ready) -> str:
    each = checkpoint_bytes(config, meta_hypernetwork(config, ready.outline, ready.start))
    text = f"disk: {each / MIB:.1f} MiB a checkpoint, {CHECKPOINTS * each / MIB:.1f} MiB at least"
    train = ready.datasets.train
    if ready.outline is None or not isinstance(train, Dataset):
        return text
    outline, channels = ready.outline, ready.outline.vae.config["latent_channels"]
    latents = latents_bytes(
        config, len(train), outline.downscaling, channels, inpainting=outline.inpainting
    )
    return text + f"; about {latents / MIB:.1f} MiB of encoded pictures"
