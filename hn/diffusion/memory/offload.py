"""What the backward pass needs, kept in the host's memory meanwhile: the last resort, for its time
goes over the bus twice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

LEAST = 64 * 1024  # bytes; what is smaller stays, since moving it costs more than it frees


class Offload(saved_tensors_hooks):
    """Moves what is saved within, but for weights and what is small."""

    def __init__(self) -> None:
        super().__init__(_send, _fetch)


@dataclass(frozen=True)
class _Sent:
    """A tensor in the host's memory (none for a meta tensor), and the device it came from."""

    there: Tensor | None
    like: torch.Size
    dtype: torch.dtype
    device: torch.device


def _send(tensor: Tensor) -> "Tensor | _Sent":
    whole = tensor if tensor._base is None else tensor._base
    if isinstance(whole, nn.Parameter) or tensor.nbytes < LEAST:
        return tensor
    there = None
    if tensor.device.type != "meta":
        pinned = tensor.device.type != "cpu"
        there = torch.empty_like(tensor, device="cpu", pin_memory=pinned).copy_(tensor)
    return _Sent(there, tensor.shape, tensor.dtype, tensor.device)


def _fetch(kept: "Tensor | _Sent") -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    if kept.there is None:
        return torch.empty(kept.like, dtype=kept.dtype, device=kept.device)
    return kept.there.to(kept.device, non_blocking=True, copy=True)
