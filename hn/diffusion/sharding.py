"""A frozen UNet dealt out to the processes: each holds a part of every weight, and gathers one
block at a time (PyTorch's FSDP2).

For base models larger than a card. The hypernetwork, small as it is, stays whole in every process,
so checkpoints, averages and optimizers are those of any other run. What is gathered is exact: the
numbers are the same to the bit.
"""

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

BLOCKS = (BasicTransformerBlock, ResnetBlock2D)  # what is gathered at once; also checkpointed alone


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


def count_held(unet: torch.nn.Module) -> int:
    """How many weights this process holds."""
    weights = (weight.data for weight in unet.parameters())
    return sum((it.to_local() if isinstance(it, DTensor) else it).numel() for it in weights)


def is_sharded(unet: torch.nn.Module) -> bool:
    """Whether all processes must take part in its forward."""
    return any(isinstance(weight, DTensor) for weight in unet.parameters())
