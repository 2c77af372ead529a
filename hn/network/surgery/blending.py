"""Several hypernetworks in one: averaged, added, or one after the other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hn.errors import ModelError, OptionError, shown
from hn.network.contents import Contents
from hn.network.description import HypernetworkConfig, Provenance
from hn.network.module import Hypernetwork
from hn.network.sharing import mended, net_by_width
from hn.network.surgery.affine import WIDE, Affine, affine_of, is_linear, name_of
from hn.network.surgery.resizing import FLAT, from_affine

Blend = Sequence[tuple[Hypernetwork, float]]
_SAME_FUNCTION = {None: "linear", "hardswish": "swish"}


def average(blend: Blend) -> Hypernetwork:
    """The weights averaged, tensor by tensor, in shares of the sum of the numbers.

    Of checkpoints of one run this is a smoother end of it (arXiv 1803.05407); of hypernetworks
    that were trained apart it may be anything. Raises `ModelError` where structures differ,
    `OptionError` if the numbers sum to 0.
    """
    total = sum(share for _, share in blend)
    if not total:
        raise OptionError("the weights of an average must not sum to 0")
    parts = [_plain(net) for net, _ in blend]
    for part, (net, _) in zip(parts, blend, strict=True):
        _check_alike(blend[0][0], parts[0].config, net, part.config)
    tensors = {
        key: sum((
            part.tensors[key].to(WIDE) * (share / total)
            for part, (_, share) in zip(parts, blend, strict=True)
        ), torch.zeros((), dtype=WIDE))
        for key in parts[0].tensors
    }  # fmt: skip
    return _built(parts[0].config, tensors, _origin("average", blend))


def add(blend: Blend) -> Hypernetwork:
    """All of them reading the same context: x + s1 m1(x) + s2 m2(x) + ..., exactly.

    Hidden layers stand side by side, as wide as all together. Linear ones become one matrix. Raises
    `ModelError` where that is not possible, as with one that is read in some blocks alone.
    """
    blend = _by_width(blend)
    nets = [net for net, _ in blend]
    if all(map(is_linear, nets)):
        changes = {
            (dim, side): _sum_of_changes(blend, dim, side)
            for dim in _dims(nets)
            for side in "kv"
        }  # fmt: skip
        return from_affine(changes, FLAT, _origin("sum", blend)).net
    parts = [_plain(net) for net in nets]
    for part, net in zip(parts, nets, strict=True):
        _check_addable(nets[0], parts[0].config, net, part.config)
    config = replace(
        parts[0].config,
        dims=_dims(nets),
        layer_structure=_side_by_side([part.config for part in parts], _dims(nets)),
        dropout_structure=(),
    )
    strengths = [strength for _, strength in blend]
    tensors: dict[str, Tensor] = {}
    for dim in config.dims:
        for side in "kv":
            tensors |= _widened(config, parts, strengths, f"{dim}.{side}.", dim)
    return _built(config, tensors, _origin("sum", blend))


def compose(blend: Blend) -> Hypernetwork:
    """One after the other, each at its strength, as a prompt with several applies them.

    Exact where all are linear, or no two rewrite contexts of one width. Raises `ModelError` for
    others.
    """
    blend = _by_width(blend)
    nets = [net for net, _ in blend]
    if all(map(is_linear, nets)):
        changes = {
            (dim, side): affine_of(blend, dim, side).plus(Affine.identity(dim), -1)
            for dim in _dims(nets)
            for side in "kv"
        }
        return from_affine(changes, FLAT, _origin("sequence", blend)).net
    shared = [dim for dim in _dims(nets) if sum(dim in net.dims for net in nets) > 1]
    if shared:
        names = ", ".join(name_of(net) for net in nets)
        raise ModelError(
            f"{names} rewrite contexts of the same widths {shown(shared)}, and not all are linear: "
            "one after the other they are no hypernetwork of this kind. Distil them into one "
            "(tools/distil.py), or apply them together: <hypernet:one:1><hypernet:other:1>"
        )
    net = add(blend)
    net.describe(optional_info=_origin("sequence", blend).optional_info)
    return net


def _by_width(blend: Blend) -> Blend:
    return [(net_by_width(net), number) for net, number in blend]


def _dims(nets: Sequence[Hypernetwork]) -> tuple[int, ...]:
    """All widths, those of the first one first."""
    return tuple(dict.fromkeys(dim for net in nets for dim in net.dims))


def _sum_of_changes(blend: Blend, dim: int, side: str) -> Affine:
    total = Affine.zero(dim)
    for net, strength in blend:
        if dim in net.dims:
            alone = affine_of([(net, strength)], dim, side)
            total = total.plus(alone).plus(Affine.identity(dim), -1)
    return total


def _plain(net: Hypernetwork) -> Contents:
    """Without dropout or an activation never applied, and with one name for each function."""
    contents = mended(Contents.of(net))
    activation = contents.config.activation_func
    return contents.with_config(activation_func=_SAME_FUNCTION.get(activation, activation))


def _check_alike(
    first: Hypernetwork, config: HypernetworkConfig, net: Hypernetwork, other: HypernetworkConfig
) -> None:
    for name in ("layer_structure", "activation_func", "is_layer_norm", "activate_output"):
        _check_same(first, config, net, other, name, "can only be added, or one after the other")
    for name in ("sides", "blocks", "block_dims"):
        _check_same(first, config, net, other, name, "cannot be averaged")
    if set(config.dims) != set(other.dims):
        _check_same(first, config, net, other, "dims", "can only be added")


def _check_addable(
    first: Hypernetwork, config: HypernetworkConfig, net: Hypernetwork, other: HypernetworkConfig
) -> None:
    remedy = "cannot stand side by side: distil them into one (tools/distil.py)"
    _check_same(first, config, net, other, "activation_func", remedy)
    if len(config.layer_structure) != len(other.layer_structure):
        _check_same(first, config, net, other, "layer_structure", remedy)
    reasons = {
        "layer norm": other.is_layer_norm,
        "an activated output": other.activate_output,
        "prelu, whose slope is learnt,": other.activation_func == "prelu",
    }
    for reason, present in reasons.items():
        if present:
            raise ModelError(f"{name_of(net)} has {reason} and {remedy}")


def _check_same(
    first: Hypernetwork, config: HypernetworkConfig, net: Hypernetwork, other: HypernetworkConfig,
    name: str, remedy: str,
) -> None:  # fmt: skip
    values = getattr(config, name), getattr(other, name)
    if values[0] != values[1]:
        raise ModelError(
            f"{name_of(first)} has {name} {shown(values[0])}, {name_of(net)} {shown(values[1])}: "
            f"such {remedy}"
        )


def _side_by_side(configs: Sequence[HypernetworkConfig], dims: Sequence[int]) -> tuple[float, ...]:
    """Multipliers with room for all hidden layers at every width, however these are rounded."""
    structure = [1.0]
    for hidden in zip(*(config.layer_structure[1:-1] for config in configs), strict=True):
        multiplier = float(sum(hidden))
        while any(int(dim * multiplier) < sum(int(dim * m) for m in hidden) for dim in dims):
            multiplier = math.nextafter(multiplier, math.inf)
        structure.append(multiplier)
    return tuple(int(m) if m.is_integer() else m for m in (*structure, 1.0))


def _widened(
    config: HypernetworkConfig, parts: Sequence[Contents], strengths: Sequence[float],
    prefix: str, dim: int,
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of a module in which those of all parts stand side by side; the rest is zero."""
    widths = [int(dim * multiplier) for multiplier in config.layer_structure]
    last = len(widths) - 2
    present = [
        (part, strength)
        for part, strength in zip(parts, strengths, strict=True)
        if dim in part.config.dims
    ]
    tensors: dict[str, Tensor] = {}
    offsets = [(0, 0)] * (last + 1)  # row and column of the next block in each layer
    for layer in range(last + 1):
        # an activation stands between any two layers
        name = f"{prefix}linear.{2 * layer}"
        weight = torch.zeros(widths[layer + 1], widths[layer], dtype=WIDE)
        bias = torch.zeros(widths[layer + 1], dtype=WIDE)
        row, column = offsets[layer]
        for part, strength in present:
            scale = strength if layer == last else 1.0
            block = part.tensors[f"{name}.weight"].to(WIDE) * scale
            height, width = block.shape
            weight[row : row + height, column : column + width] += block
            bias[row : row + height] += part.tensors[f"{name}.bias"].to(WIDE) * scale
            row += height if layer < last else 0
            column += width if layer > 0 else 0
        tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return tensors


def _built(
    config: HypernetworkConfig, tensors: Mapping[str, Tensor], provenance: Provenance
) -> Hypernetwork:
    return Contents(config=config, provenance=provenance, tensors=tensors).check().build()


def _origin(how: str, blend: Blend) -> Provenance:
    """Where a blend comes from: what it is of, and the base model if all had the same."""
    told = ", ".join(f"{name_of(net)} ({number:g})" for net, number in blend)
    provenances = [net.provenance for net, _ in blend]
    hashes = {(it.sd_checkpoint, it.sd_checkpoint_name) for it in provenances}
    checkpoint, name = hashes.pop() if len(hashes) == 1 else (None, None)
    return Provenance(
        optional_info=f"{how} of {told}", sd_checkpoint=checkpoint, sd_checkpoint_name=name
    )
