"""The structure of a hypernetwork: its layers, by the settings, and where in a UNet they are read.

`train_blocks` restricts it to blocks; with `per_block`, each of them (or, where none are named,
each block of the UNet that has attention) gets modules of its own. A width is trained only where
there is attention of it, so that every weight gets a gradient.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from hn.config import NetworkConfig
from hn.diffusion.attending.places import block_names, dims_by_place
from hn.diffusion.attending.strength import PARTS
from hn.diffusion.attention import attention_layers
from hn.diffusion.loading.outline import Outline
from hn.errors import ModelError, OptionError, meant, shown
from hn.network import families
from hn.network.description import HypernetworkConfig
from hn.network.reach import covers, overlap

ANY_DIM = 320  # for a first look at an architecture: which widths it gets is not known yet
Available = Mapping[str, Iterable[int]]  # context widths by place


def layers_of(network: NetworkConfig, dims: tuple[int, ...] = (ANY_DIM,)) -> HypernetworkConfig:
    """The layers that the settings give, in all of a UNet. Raises `ModelError` for none."""
    return HypernetworkConfig(
        dims=network.dims or dims,
        layer_structure=network.layer_structure,
        activation_func=network.activation_func,
        weight_initialization=network.weight_initialization,
        is_layer_norm=network.is_layer_norm,
        activate_output=network.activate_output,
        dropout_structure=network.dropout_structure,
        sides=network.sides,
    )


def structure_of(
    network: NetworkConfig, unet: UNet2DConditionModel, name: str
) -> HypernetworkConfig:
    """What the settings give for a UNet, which may be one without memory, of the model `name`.

    Raises `OptionError` for blocks that it does not have, `ModelError` for widths.
    """
    available = dims_by_place(attention_layers(unet))
    blocks = network.train_blocks
    if network.per_block and not blocks:
        blocks = tuple(it for it in block_names(available) if _is_alone(it))
    _check_blocks(blocks, available, name)
    config = layers_of(network, widths(blocks, available))
    check_dims(config.dims, widths((), available), name)
    _check_read(config.dims, network.train_blocks, available)
    return _reaching(config, blocks, available, per_block=network.per_block)


def expected(network: NetworkConfig, outline: Outline | None) -> HypernetworkConfig:
    """The same for a base model that is not loaded yet; of an unknown one, what can be said."""
    if outline is not None:
        return structure_of(network, outline.unet, outline.name)
    described = layers_of(network)
    blocks = network.train_blocks or (PARTS if network.per_block else ())
    own = (described.dims,) * len(blocks) if network.per_block else ()
    return replace(described, blocks=blocks, block_dims=own)


def widths(blocks: tuple[str, ...], available: Available) -> tuple[int, ...]:
    """The context widths in some blocks, ascending; in all of the UNet if none are named."""
    return tuple(
        sorted(
            {
                dim
                for place, dims in available.items()
                if not blocks or any(covers(block, place) for block in blocks)
                for dim in dims
            }
        )
    )


def check_file(
    config: HypernetworkConfig, unet: UNet2DConditionModel, name: str, source: str = ""
) -> None:
    """Hold the structure of a file against a UNet. Raises `ModelError`."""
    available = dims_by_place(attention_layers(unet))
    check_dims(config.dims, widths((), available), name, source)
    own = config.block_dims or [()] * len(config.blocks)
    for block, dims in zip(config.blocks, own, strict=True):
        there = widths((block,), available)
        if not there or not set(dims) <= set(there):
            raise ModelError(
                f"block {block}{source} has the widths {shown(dims or config.dims)}, in {name} it "
                f"has {shown(there)}: take the base model that it was made for"
            )


def check_dims(dims: tuple[int, ...], known: tuple[int, ...], name: str, source: str = "") -> None:
    """Refuse widths that a base model does not have. Raises `ModelError`."""
    unknown = [dim for dim in dims if dim not in known]
    if unknown:
        raise ModelError(
            f"dims {unknown}{source} are not context widths of {name}: it has "
            f"{families.described(known)}, and {' '.join(map(str, dims))} are those of "
            f"{families.made_for(dims)}. Leave {unknown} out, or take the base model that they "
            "were made for"
        )


def _is_alone(block: str) -> bool:
    """Whether it is one of the blocks that the UNet is made of."""
    return block == "mid" or (block.count(".") == 1 and not block.startswith("mid"))


def _check_blocks(blocks: tuple[str, ...], available: Available, name: str) -> None:
    known = block_names(available)
    for block in blocks:
        if block not in known:
            raise OptionError(
                f"train_blocks {shown(block)} is no block of {name} with attention"
                f"{meant(block, known)}; it has {', '.join(known)}"
            )
    if (two := overlap(blocks)) is not None:
        raise OptionError(
            f"train_blocks {two[0]} and {two[1]}: the second is in the first; give one of the two"
        )


def _check_read(dims: tuple[int, ...], blocks: tuple[str, ...], available: Available) -> None:
    """Refuse a width that is read in none of the blocks, and a block that reads none of them."""
    there = widths(blocks, available)
    unread = [dim for dim in dims if dim not in there]
    if unread:
        raise OptionError(
            f"dims {shown(unread)} are not read in train_blocks {', '.join(blocks)}, where there "
            f"is attention of the widths {shown(there)}: leave them out, or name more blocks"
        )
    for block in blocks:
        if not set(dims) & set(inside := widths((block,), available)):
            raise OptionError(
                f"train_blocks {block} has attention of the widths {shown(inside)}, none of which "
                f"is in dims {shown(dims)}: leave one of the two out"
            )


def _reaching(
    config: HypernetworkConfig, blocks: tuple[str, ...], available: Available, *, per_block: bool
) -> HypernetworkConfig:
    """The same in some blocks; everywhere if these are all and share their modules."""
    inside = {
        block: tuple(dim for dim in config.dims if dim in widths((block,), available))
        for block in blocks
    }
    blocks = tuple(block for block in blocks if inside[block])
    outside = [place for place in available if not any(covers(block, place) for block in blocks)]
    complete = not any(set(config.dims) & set(available[place]) for place in outside)
    if not per_block:
        return replace(config, blocks=() if complete else blocks)
    block_dims = tuple(inside[block] for block in blocks)
    return replace(config, blocks=blocks, block_dims=block_dims, complete=complete)
