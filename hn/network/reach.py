"""Which layers read through a hypernetwork, and on which side.

    everywhere   one pair of modules for each width, for all layers of that width: what the web UI
                 and ComfyUI know
    blocks       the same in the named blocks of the UNet alone; other layers read what they always
                 read
    per block    each of the blocks has modules of its own, for the widths of its attention

In each form one side may have no modules: it is read as it is. A block is named as diffusers names
it, but for the word: `down`, `mid`, `up`, a block such as `down.1`, or one attention in it, such as
`down.1.0` (of `mid`: `mid.0`). Where a layer is, its place, has the last form.
"""

import re
from collections.abc import Iterable
from itertools import permutations
from typing import Any, Literal

from hn.errors import ModelError, shown

SidesTrained = Literal["both", "k", "v"]
_BLOCK = re.compile(r"(down|mid|up)(\.\d{1,3}){0,2}")
MAX_PAIRS = 256  # far above those of any UNet


def covers(block: str, place: str) -> bool:
    """Whether a place (or block) is that block, or in it."""
    return f"{place}.".startswith(f"{block}.")


def is_block(name: Any) -> bool:
    """Whether a UNet could have a block of that name."""
    return isinstance(name, str) and _BLOCK.fullmatch(name) is not None


def overlap(blocks: Iterable[str]) -> tuple[str, str] | None:
    """Two of the blocks of which the second is in the first, or the same, if there are any."""
    return next((two for two in permutations(blocks, 2) if covers(*two)), None)


def check_reach(
    dims: tuple[int, ...], sides: Any, blocks: Any, block_dims: Any, complete: Any
) -> None:
    """Refuse what no hypernetwork can be, whatever the types. Raises `ModelError`."""
    if sides not in ("both", "k", "v"):
        raise ModelError(f"sides must be both, k or v; found {shown(sides)}")
    if not isinstance(complete, bool):
        raise ModelError(f"complete must be true or false; found {shown(complete)}")
    if not isinstance(blocks, tuple) or not all(map(is_block, blocks)) or len(blocks) > MAX_PAIRS:
        raise ModelError(
            f"blocks must be names such as (down.1, mid), at most {MAX_PAIRS}; found "
            f"{shown(blocks)}"
        )
    if (two := overlap(blocks)) is not None:
        raise ModelError(f"blocks must not hold each other; found {two[0]} and {two[1]}")
    if block_dims != ():
        _check_block_dims(dims, blocks, block_dims)


def _check_block_dims(dims: tuple[int, ...], blocks: tuple[str, ...], block_dims: Any) -> None:
    fits = isinstance(block_dims, tuple) and len(block_dims) == len(blocks)
    if not fits or not all(isinstance(some, tuple) and some for some in block_dims):
        raise ModelError(
            f"block_dims must be some widths for each of the {len(blocks)} blocks; found "
            f"{shown(block_dims)}"
        )
    found = [dim for some in block_dims for dim in some]
    once = all(type(dim) is int for dim in found) and all(
        len(set(some)) == len(some) for some in block_dims
    )
    if len(found) > MAX_PAIRS or not once or set(found) != set(dims):
        raise ModelError(
            f"block_dims must hold the widths of dims {shown(dims)}, in each block once; found "
            f"{shown(found)}"
        )
