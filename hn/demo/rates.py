"""What the demo's trainings share: a learning rate that falls, and a running average of weights."""

import math

import torch
from torch import nn


def follow(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the running average of the weights: over a tenth of the steps, 1,000 at most."""
    decay = min(0.999, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def cosine(step: int, steps: int) -> float:
    """From 1 to 0.02 over the run."""
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
