"""How much of a UNet that DeepSpeed deals out is ever whole, in weights: gathered.py MODEL.

Prints the count of the UNet, of its largest block, and the most that was seen within any layer.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import hn
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.sharding import BLOCKS


def main(model):
    torch.distributed.init_process_group("gloo")
    base = BaseModel.load(model, dtype=torch.float32)
    counts = [count(module) for module in base.unet.modules() if isinstance(module, BLOCKS)]
    found = [count(base.unet), max(counts)]
    base.shard(torch.device("cpu"), with_deepspeed=True)
    seen = []

    def look(*_):
        seen.append(count(base.unet))

    def look_twice(module, inputs, output):
        look()
        if torch.is_tensor(output) and output.requires_grad:
            output.register_hook(look)

    for module in base.unet.modules():
        if not list(module.children()):
            module.register_forward_hook(look_twice)
    net = hn.Hypernetwork.create(base.dims, weight_initialization="Normal")
    denoiser = Denoiser(base.unet, net)
    condition = Condition(context=torch.randn(2, 77, base.unet.config["cross_attention_dim"]))
    for _ in range(2):
        seen.clear()
        prediction, _ = denoiser(torch.randn(2, 4, 8, 8), torch.tensor([9, 99]), condition)
        prediction.square().mean().backward()
    if torch.distributed.get_rank() == 0:
        print(json.dumps([*found, max(seen)]))
    torch.distributed.destroy_process_group()


def count(module):
    return sum(weight.numel() for weight in module.parameters())


if __name__ == "__main__":
    main(*sys.argv[1:])
