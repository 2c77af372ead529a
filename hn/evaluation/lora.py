"""A LoRA of as many parameters, trained on the same problems: what a hypernetwork is held against.

It changes the weights of the UNet's own attention (arXiv 2106.09685), so the two can be compared
where it counts: what is learnt, what else changes, for how many bytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import islice

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from tqdm import tqdm

from hn.diffusion.base_model import BaseModel
from hn.diffusion.denoiser import predict
from hn.errors import OptionError
from hn.evaluation.course import Course
from hn.evaluation.paired import Predict

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # as diffusers' own training script has them
NAME = "lora"


def check_installed() -> None:
    """Raises `OptionError` without the package that makes LoRAs."""
    if find_spec("peft") is None:
        raise OptionError("a LoRA needs the package peft: pip install peft")


def rank_of(unet: UNet2DConditionModel, parameters: int) -> int:
    """The rank of the LoRA whose number of parameters is nearest to that."""
    return max(1, round(parameters / count(unet, rank=1)))


def count(unet: UNet2DConditionModel, rank: int) -> int:
    """The number of parameters of a LoRA of that rank."""
    layers = [layer for name, layer in unet.named_modules() if name.endswith(TARGETS)]
    return rank * sum(layer.in_features + layer.out_features for layer in layers)


@contextmanager
def added(unet: UNet2DConditionModel, rank: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """Give the UNet a new LoRA for a while; yields what is to train."""
    try:
        yield add(unet, rank, seed)
    finally:
        unet.unload_lora()


def add(unet: UNet2DConditionModel, rank: int, seed: int) -> list[nn.Parameter]:
    """Give the UNet a new LoRA, which changes nothing yet; returns what is to train."""
    from peft import LoraConfig

    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights="gaussian"
    )
    unet.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(config, NAME)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def predictor(base: BaseModel) -> Predict:
    """What the UNet predicts, with whatever is attached or added to it."""
    return partial(predict, base.unet)


def train(base: BaseModel, parameters: list[nn.Parameter], course: Course, factor: float) -> None:
    """Train as the hypernetwork was, with its rates times `factor`."""
    forward, none = predictor(base), torch.zeros((), device=base.device)
    steps = course.steps(
        lambda *inputs: (forward(*inputs), none),
        parameters,
        lambda step: factor * course.rates.rate(step),
    )
    for _ in tqdm(islice(steps, course.rates.end), "LoRA", course.rates.end, leave=False):
        pass
