"""The same function in the form that every host knows: one (k, v) pair for each width, read through
in all of the UNet, without what some hosts compute otherwise.

Exact or not at all. A side without modules becomes modules that add nothing, since all their
weights are zero; modules of single blocks become one if they are equal, and no attention of their
widths is outside of the blocks.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hn.errors import ModelError
from hn.network.contents import Contents, skeleton
from hn.network.module import Hypernetwork, HypernetworkModule

PROBE = (2, 3)  # contexts: a batch, since some activations run over it, of so many tokens
_FORM = "which the form of the web UI, one pair of modules for each width, cannot say"


def by_width(contents: Contents) -> Contents:
    """Contents in that form. Raises `ModelError` with the reason where there is none."""
    reason = obstacle(contents)
    if reason is not None:
        raise ModelError(f"this hypernetwork cannot be written for other hosts: {reason}")
    if contents.config.is_everywhere:
        return contents
    config = replace(contents.config, sides="both", blocks=(), block_dims=(), complete=False)
    found = {key: tensors[0] for key, tensors in _by_key(contents).items()}
    dtype = next((tensor.dtype for tensor in found.values()), torch.float32)
    tensors = {
        key: found.get(key, torch.zeros(empty.shape, dtype=dtype))
        for key, empty in skeleton(config).tensors().items()
    }
    return replace(contents, config=config, tensors=tensors)


def net_by_width(net: Hypernetwork) -> Hypernetwork:
    """A hypernetwork in that form; itself if it has it. Raises as `by_width` does."""
    return net if net.config.is_everywhere else by_width(Contents.of(net)).build()


def obstacle(contents: Contents) -> str | None:
    """Why contents have no such form; None if they have."""
    config = contents.config
    if config.is_everywhere:
        return None
    if config.blocks and not config.complete:
        return (
            f"only {', '.join(config.blocks)} read through it, and other attention of these widths "
            f"does not, {_FORM}"
        )
    if config.sides != "both" and not _can_add_nothing(contents):
        return (
            f"it is for {config.sides} only, and with these layers no module adds nothing on the "
            "other side"
        )
    return _difference(contents)


def mended(contents: Contents) -> Contents:
    """The same function, described so that more hosts compute it: no dropout, no unused activation.

    What else can be mended (flags, names, order, container) is so by writing the file.
    """
    config = contents.config
    applied = config.activate_output or len(config.layer_structure) > 2
    activation = config.activation_func if applied else "linear"
    return contents.with_dropout().with_config(activation_func=activation)


def _by_key(contents: Contents) -> Mapping[str, list[Tensor]]:
    """Tensors by their names where blocks share them, such as `768.k.linear.0.weight`: one, or that
    of each block.
    """
    if not contents.config.block_dims:
        return {key: [tensor] for key, tensor in contents.tensors.items()}
    found: dict[str, list[Tensor]] = {}
    for key, tensor in contents.tensors.items():
        found.setdefault(key.partition(".")[2], []).append(tensor)
    return found


def _difference(contents: Contents) -> str | None:
    """Which blocks have other modules than the first block with the same width, in words."""
    for key, (first, *others) in _by_key(contents).items():
        if not all(torch.equal(first, other) for other in others):
            dim = int(key.partition(".")[0])
            config = contents.config
            blocks = [
                block
                for block, dims in zip(config.blocks, config.block_dims, strict=True)
                if dim in dims
            ]
            return f"the modules of width {dim} differ between {' and '.join(blocks)}, {_FORM}"
    return None


@torch.no_grad()
def _can_add_nothing(contents: Contents) -> bool:
    """Whether a module with weights of zero gives zero for any context."""
    dim = min(contents.config.dims)
    module = HypernetworkModule(dim, contents.config, draw_weights=False).eval()
    for weight in module.parameters():
        weight.zero_()
    probe = torch.randn(*PROBE, dim, generator=torch.Generator().manual_seed(dim))
    return not bool(module.linear(probe).any())
