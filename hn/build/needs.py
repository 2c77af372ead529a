"""What a run takes of memory and disk, as far as it is known before anything is loaded."""

import math

import torch

from hn.build.start import ANY_DIM, Start, new_hypernetwork
from hn.config import Config
from hn.diffusion.outline import Outline
from hn.network.module import Hypernetwork
from hn.training.optimizers import state_bytes

FLOAT = 4  # bytes


def meta_hypernetwork(config: Config, outline: Outline | None, start: Start) -> Hypernetwork:
    """The hypernetwork of a run without memory for its weights; of an unknown base model's widths,
    one.
    """
    dims = config.network.dims or ((ANY_DIM,) if outline is None else outline.dims)
    with torch.device("meta"):
        if start.hypernetwork is not None:
            return Hypernetwork(start.hypernetwork.config, draw_weights=False)
        return new_hypernetwork(config.network, dims, config.training.seed)


def checkpoint_bytes(config: Config, net: Hypernetwork) -> int:
    """What a checkpoint takes: both files of the weights and of their average, and the states."""
    count = _count(net)
    averages = 1 if config.training.use_ema else 0
    state = state_bytes(config.optimizer, FLOAT * count)
    files = 2 * FLOAT * count * (1 + averages)
    copies = 2 if config.output.save_optimizer_state else 1
    return files + FLOAT * count * averages + copies * state


def latents_bytes(config: Config, pictures: int, downscaling: int, channels: int) -> int:
    """What the encoded pictures take on the disk: mean and deviation of every variant."""
    data = config.data
    variants = data.crops_per_image if data.random_crop else 1
    variants *= 2 if data.random_flip else 1
    width = FLOAT if data.latent_cache_dtype == "fp32" else FLOAT // 2
    return 2 * width * variants * pictures * channels * math.prod(data.size) // downscaling**2


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
