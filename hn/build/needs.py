"""What a run takes of memory and disk, as far as it is known before anything is loaded."""

import math

import torch

from hn.build.start import Start
from hn.build.structure import expected
from hn.config import Config
from hn.diffusion.loading.outline import Outline
from hn.network.contents import skeleton
from hn.network.module import Hypernetwork
from hn.training.optimizers import state_bytes

FLOAT = 4  # bytes


def meta_hypernetwork(config: Config, outline: Outline | None, start: Start) -> Hypernetwork:
    """The hypernetwork of a run without memory for its weights; of an unknown base model's widths,
    one. Raises as `structure_of` does.
    """
    file = start.hypernetwork
    described = expected(config.network, outline) if file is None else file.config
    return skeleton(described)


def checkpoint_bytes(config: Config, net: Hypernetwork) -> int:
    """What a checkpoint takes: both files of the weights and of their average, and the states."""
    count = _count(net)
    averages = 1 if config.training.use_ema else 0
    state = state_bytes(config.optimizer, FLOAT * count)
    files = 2 * FLOAT * count * (1 + averages)
    copies = 2 if config.output.save_optimizer_state else 1
    return files + FLOAT * count * averages + copies * state


def latents_bytes(
    config: Config, pictures: int, downscaling: int, channels: int, *, inpainting: bool = False
) -> int:
    """What the encoded pictures take on the disk: mean and deviation of every variant, and what an
    inpainting model reads beside.
    """
    data = config.data
    variants = data.crops_per_image if data.random_crop else 1
    variants *= 2 if data.random_flip else 1
    width = FLOAT if data.latent_cache_dtype == "fp32" else FLOAT // 2
    each = 2 * channels
    if inpainting:
        each += (1 if data.inpainting_masks == "files" else data.masks_per_image) * (1 + channels)
    return each * width * variants * pictures * math.prod(data.size) // downscaling**2


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
