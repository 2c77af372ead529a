"""The gradients of a step, as a process holds them: all of them, or (`hn.training.zero`) a part."""

import torch
from torch import Tensor
from torch.nn import Module


class Gradients:
    """Those of all weights, in every process."""

    def __init__(self, model: Module) -> None:
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]

    def held(self) -> list[Tensor]:
        """Those that this process holds, to be changed in place."""
        return [weight.grad for weight in self._weights if weight.grad is not None]

    def norm(self, held: list[Tensor]) -> Tensor:
        """The norm () of all gradients as one vector, whoever holds them, on their device."""
        return norm_of(held)


def norm_of(tensors: list[Tensor]) -> Tensor:
    """The norm () of tensors as one vector, on their device."""
    if not tensors:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
