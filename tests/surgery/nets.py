"""Random hypernetworks of every width of the tiny UNet, that change a lot."""

from collections.abc import Sequence

import torch

import hn
from hn.network.surgery import resizing
from tests import tiny


def make(seed: int = 0, dims: Sequence[int] = tiny.DIMS, **structure) -> hn.Hypernetwork:
    """Biases too, which a new one has not."""
    net = hn.Hypernetwork.create(
        dims, weight_initialization="XavierNormal", seed=seed, name=f"net{seed}", **structure
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def low_rank(rank: int, dims: Sequence[int] = tiny.DIMS) -> hn.Hypernetwork:
    """A linear one of that rank in its narrowest width, without a bias for values."""
    net = resizing.resize(make(0, dims), (1, rank / min(dims), 1)).net
    with torch.no_grad():
        for dim in net.dims:
            net.module(dim, "v").linear[1].bias.zero_()
    net.describe(name="low")
    return net


def contexts(dim: int, count: int = 64, seed: int = 0) -> torch.Tensor:
    """Contexts (1, N, D) as large as a layer norm leaves them, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, dim, generator=generator, dtype=torch.float64)
