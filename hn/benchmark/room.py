"""Whether there is room for what is to be measured."""

from collections.abc import Mapping
from pathlib import Path

import torch

from hn.benchmark.counts import Counts, unet_bytes
from hn.benchmark.scene import Scene
from hn.errors import StorageError

GIB = 2**30


def check(scene: Scene, counts: Mapping[str, Counts]) -> None:
    """Raises `StorageError` if the device cannot hold all of them."""
    static = unet_bytes(scene) + sum(it.static for it in counts.values())
    hungriest = max(counts, key=lambda name: counts[name].peak)
    activations, free = counts[hungriest].peak, free_bytes(scene.device)
    if static + activations <= free:
        return
    raise StorageError(
        f"{scene.device} has {free / GIB:.1f} GiB free, but {static / GIB:.1f} GiB of weights, "
        f"gradients and moments and {activations / GIB:.1f} GiB of activations ({hungriest}) are "
        "needed. Lower --batch or --resolution, take --precision bf16, or name fewer in --only."
    )


def free_bytes(device: str) -> int:
    """What may still be allocated."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable"))
    return int(available.split()[1]) * 1024
