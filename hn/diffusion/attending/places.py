"""Where in the UNet its attention is, by the names that hypernetworks give to blocks (`reach`)."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from hn.diffusion.attending.strength import PARTS, Choices
from hn.errors import ModelError
from hn.network.families import check_pairing
from hn.network.module import Hypernetwork
from hn.network.reach import covers

_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")


def place_of(layer: str) -> str:
    """The place of an attention layer by its name in the UNet: `down.1.0` of
    `down_blocks.1.attentions.0.transformer_blocks.0.attn2`.
    """
    block = layer.partition(".transformer_blocks")[0]
    return ".".join([block.partition("_")[0], *_NUMBER.findall(block)])


def divide(places: Mapping[str, str], nets: Iterable[Hypernetwork]) -> dict[str, str]:
    """Of each layer at its place, the smallest of the UNet's three parts and of the blocks that
    `nets` name which it is in: all layers there read through the same.
    """
    blocks = {*PARTS, *(block for net in nets for block in net.config.blocks)}
    return {
        layer: max((it for it in blocks if covers(it, place)), key=len)
        for layer, place in places.items()
    }


def dims_by_place(layers: Mapping[str, Any]) -> dict[str, set[int]]:
    """The context widths at each place that has attention, in the UNet's order from in to out."""
    found: dict[str, set[int]] = {}
    for name in sorted(layers, key=lambda name: PARTS.index(place_of(name).partition(".")[0])):
        found.setdefault(place_of(name), set()).add(layers[name].to_k.in_features)
    return found


def block_names(places: Iterable[str]) -> list[str]:
    """All names of blocks that have attention: parts, blocks, and single attentions."""
    parted = [place.split(".") for place in places]
    return [*dict.fromkeys(name for it in parted for name in accumulate(it, "{}.{}".format))]


def check_fit(stack: Choices, available: Mapping[str, Iterable[int]]) -> None:
    """Warn of widths and blocks that a UNet with these widths by place lacks.

    Raises `ModelError` for a hypernetwork that has no others, or that is for another family.
    """
    check_pairing(
        [net for net, _ in stack], sorted({dim for dims in available.values() for dim in dims})
    )
    known = block_names(available)
    for net, _ in stack:
        _check_blocks(net, known)


def _check_blocks(net: Hypernetwork, known: Sequence[str]) -> None:
    own = net.config.blocks
    unknown = [block for block in own if block not in known]
    if not unknown:
        return
    name = net.provenance.name or "the hypernetwork"
    if len(unknown) == len(own):
        raise ModelError(
            f"{name} has the blocks {own}, the UNet {known}: it is for another base model"
        )
    warnings.warn(
        f"{name}: the UNet has no attention in the blocks {unknown}; they do nothing", stacklevel=5
    )
