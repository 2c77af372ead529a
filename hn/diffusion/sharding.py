"""A frozen UNet dealt out to the processes: each holds a part of every weight, and gathers one
block at a time (PyTorch's FSDP2, or DeepSpeed's ZeRO stage 3).

For base models larger than a card. The hypernetwork, small as it is, stays whole in every process,
so checkpoints and averages are those of any other run. What is gathered is exact: predictions are
the same to the bit.
"""

import logging
import warnings
from importlib import import_module
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hn.errors import OptionError

BLOCKS = (BasicTransformerBlock, ResnetBlock2D)  # what is gathered at once; also checkpointed alone
OF_DEEPSPEED = "ds_tensor"  # what it gives a weight: the part that this process holds


def shard(unet: UNet2DConditionModel, device: torch.device) -> None:
    """Deal the weights out to all processes, onto their `device`; every process must call it.

    It goes block by block, so no device ever holds the whole model. From now on every process must
    take part in every forward of the UNet.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    parts = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    blocks = [module for module in unet.modules() if isinstance(module, BLOCKS)]
    for module in [*blocks, *parts, unet]:
        fully_shard(module, mesh=mesh)


def shard_with_deepspeed(unet: UNet2DConditionModel) -> Any:
    """As `shard`; the UNet gathers its blocks for as long as what is returned, an engine, is kept.

    Raises `OptionError` where DeepSpeed is not installed.
    """
    deepspeed = import_deepspeed()
    settings = settings_of_deepspeed(
        stage=3,
        stage3_param_persistence_threshold=0,  # else small weights stay whole,
        stage3_max_reuse_distance=0,  # and what is gathered, until the backward pass,
        stage3_prefetch_bucket_size=0,  # and what is gathered ahead: in all nearly the whole UNet
        memory_efficient_linear=False,  # it would replace torch's, and round otherwise
    )
    deepspeed.utils.set_z3_leaf_modules(unet, list(BLOCKS))
    # At once, so that no device ever holds the whole model: the engine begins by moving it.
    deepspeed.zero.Init(module=unet, config_dict_or_path=settings, dtype=unet.dtype)
    engine, *_ = deepspeed.initialize(model=unet, config=settings)
    return engine


def import_deepspeed() -> Any:
    """The package, without its many words. Raises `OptionError` where it is not installed."""
    try:
        deepspeed: Any = import_module("deepspeed")
    except ImportError as error:
        raise OptionError(
            f"shard_optimizer needs the package deepspeed ({error}): pip install -e '.[deepspeed]'"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # torch's old names
        warnings.filterwarnings("ignore", f".*{name}. is deprecated", FutureWarning)
    # Else it compiles a collective for processes on one machine's CPUs, which takes a minute.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def settings_of_deepspeed(**zero: Any) -> dict[str, Any]:
    """Its settings for what it deals out so; all else that it would do by itself is off."""
    return {
        "zero_optimization": zero,
        "gradient_clipping": 0.0,  # the guard clips
        "zero_allow_untested_optimizer": True,  # `hn.limits` names those that work
        "timers": {"throughput": {"enabled": False}},  # they wait for the device
        "train_micro_batch_size_per_gpu": 1,  # for its logs alone
        "steps_per_print": 2**62,
    }


def count_held(unet: torch.nn.Module) -> int:
    """How many weights this process holds."""
    return sum(_held(weight).numel() for weight in unet.parameters())


def is_sharded(unet: torch.nn.Module) -> bool:
    """Whether all processes must take part in its forward."""
    weights = unet.parameters()
    return any(isinstance(it, DTensor) or hasattr(it, OF_DEEPSPEED) for it in weights)


def _held(weight: torch.Tensor) -> torch.Tensor:
    if isinstance(weight.data, DTensor):
        return weight.data.to_local()
    return getattr(weight, OF_DEEPSPEED, weight)
