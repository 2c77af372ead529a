"""What weights do, in numbers: how much a module changes a context, in how many directions, with
how many of its units.

Measured on contexts drawn from a standard normal distribution: what attention reads has gone
through a layer norm, so its values are of that size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hn.errors import ModelError
from hn.network.contents import Contents
from hn.network.module import HypernetworkModule, Part

PROBES = (8, 256)  # contexts: a batch, since some activations run over it, of so many tokens
ALIKE = 1e-6  # what varies less, relative to the size of its values, is alike


@dataclass(frozen=True)
class ModuleFacts:
    """One module; `block` is "" where all share it.

    `change`: size of what it adds, relative to the context (root mean square).
    `rank`: effective rank of what it adds, exp of the entropy of its singular values (Roy and
    Vetterli 2007), at most `dim`. `dead`: hidden units that answer all contexts alike, of `units`.
    """

    block: str
    dim: int
    side: str
    parameters: int
    weight_norm: float
    change: float
    rank: float
    dead: int
    units: int


def examine(contents: Contents) -> Iterator[ModuleFacts]:
    """The facts of each module in turn. Raises `ModelError` for spoilt or overflowing weights."""
    net = contents.build().double()  # large weights overflow later, ranks have less noise
    yield from map(_examine, net.parts())


def dtypes(tensors: Mapping[str, Tensor]) -> list[str]:
    """The precisions that the tensors are stored in, such as `float32`."""
    return sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})


@torch.no_grad()
def _examine(part: Part) -> ModuleFacts:
    dim, module = part.dim, part.module
    context = torch.randn(*PROBES, dim, generator=torch.Generator().manual_seed(dim)).double()
    added = module.linear(context)  # (B, N, D)
    if not added.isfinite().all():
        raise ModelError(f"the weights of {part.name} are so large that its outputs overflow")
    dead, units = _dead_units(module, context)
    return ModuleFacts(
        block=part.block,
        dim=dim,
        side=part.side,
        parameters=sum(p.numel() for p in module.parameters()),
        weight_norm=float(sum(p.square().sum() for p in module.parameters()) ** 0.5),
        change=float(added.square().mean().sqrt()),
        rank=effective_rank(added.flatten(0, 1)),
        dead=dead,
        units=units,
    )


def effective_rank(rows: Tensor) -> float:
    """The effective rank of `rows` (N, D) about their mean; 0 if they are all alike."""
    centred = rows - rows.mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    singular = eigenvalues.sqrt()
    if singular.max() <= ALIKE * rows.norm():
        return 0.0
    shares = singular / singular.sum()
    return float(torch.special.entr(shares).sum().exp())


def _dead_units(module: HypernetworkModule, context: Tensor) -> tuple[int, int]:
    """Hidden units whose value, as the next Linear reads it, is the same for all contexts."""
    dead = units = 0
    hidden = context
    for layer in module.linear:
        if isinstance(layer, nn.Linear) and hidden is not context and layer.in_features:
            spread = hidden.flatten(0, 1).std(0)  # (width,)
            dead += int((spread <= ALIKE * hidden.abs().max()).sum())
            units += len(spread)
        hidden = layer(hidden)
    return dead, units
