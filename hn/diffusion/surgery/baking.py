"""Base models in files, with linear hypernetworks folded into their attention: what every program
draws with that knows no hypernetworks.

Only `to_k`, `to_v` and the bias of `to_out.0` are changed, in the precision they are stored in; all
other bytes are copied. Names of tensors are those of diffusers (`down_blocks. ...`), or of single
files (`model.diffusion_model.input_blocks. ...`), which call attention alike.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hn.diffusion.attending.places import place_of
from hn.diffusion.attending.strength import Choices
from hn.diffusion.single_file.writing import entries_of, weights_of
from hn.diffusion.surgery.folding import Maps, maps_of
from hn.diffusion.surgery.layer import Exactness, LayerWeights, measure
from hn.diffusion.surgery.tensor_files import TensorFile, write
from hn.errors import ModelError, OptionError, StorageError
from hn.network.surgery.affine import name_of

METADATA = "hypernetworks"
PARTS = {
    "input_blocks": "down", "middle_block": "mid", "output_blocks": "up",
    "down_blocks": "down", "mid_block": "mid", "up_blocks": "up",
}  # fmt: skip
_LAYER = re.compile(r"((?:model\.diffusion_model\.)?(\w+_blocks?)\.[\w.]*\.attn[12])\.to_k\.weight")
_COUNTED = {"input_blocks": 1, "middle_block": 1, "output_blocks": 0}  # number of the first layer
_DOWN = re.compile(r"\binput_blocks\.(\d+)\.0\.op\.weight")
_READ = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")
_FOLDED = ("to_k.weight", "to_v.weight", "to_out.0.bias")
_FOREIGN_WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".onnx_data", ".h5")


def bake(base: Path, stack: Choices, output: Path, dtype: torch.dtype | None = None) -> Exactness:
    """Write `base` (a diffusers folder, or a single file) with the stack folded in.

    What changes is stored in `dtype`, or as it was. An `output` that ends with .safetensors is a
    single file, any other a folder. Raises `ModelError` and `OptionError` as `hn.fold` does, or
    where the base cannot become that, and `StorageError`.
    """
    to_file = output.suffix == ".safetensors"
    if base.is_dir():
        write_kind = _folder_to_file if to_file else _folder
        return write_kind(base, stack, output, dtype)
    if not to_file:
        raise OptionError(
            f"-o {output} must end with .safetensors, since {base} is a single file: diffusers' "
            "from_single_file and save_pretrained make a folder of it"
        )
    return _file(base, stack, output, dtype)


def layers_in(names: Iterable[str]) -> dict[str, str]:
    """The attention layers among the names of tensors, each with its place in the UNet."""
    names = list(names)
    step = min((int(found[1]) for name in names if (found := _DOWN.search(name))), default=3)
    found = (_LAYER.fullmatch(name) for name in names)
    return {
        match[1]: _place_in(match[1], match[2], step)
        for match in found
        if match and match[2] in PARTS
    }


def _place_in(layer: str, blocks: str, step: int) -> str:
    """The place of a layer; single files count all of a part's layers through, of which each block
    has so many, with the one that changes the size.
    """
    if blocks not in _COUNTED:
        return place_of(layer)
    number = int(layer.partition(f"{blocks}.")[2].partition(".")[0]) - _COUNTED[blocks]
    block = () if blocks == "middle_block" else (number // step,)
    return ".".join(map(str, (PARTS[blocks], *block, number % step)))


def fold_files(
    files: Sequence[TensorFile], stack: Choices, where: Path, dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], Exactness]:
    """The tensors that change, and how exactly. Raises `ModelError` as `hn.fold` does."""
    home = {name: file for file in files for name in file.entries}
    layers = layers_in(home)
    _check(layers, home, where)
    available: dict[str, set[int]] = {}
    for layer, place in layers.items():
        name = f"{layer}.to_k.weight"
        available.setdefault(place, set()).add(home[name].entries[name][1][1])
    maps = maps_of(stack, available)
    changed: dict[str, Tensor] = {}
    worst = Exactness(0.0, 0.0)
    for layer, place in tqdm(layers.items(), "folding", unit="layer", delay=1, leave=False):
        new, exactness = _fold_layer(layer, place, home, maps, dtype)
        changed |= new
        worst = worst.worst(exactness)
    return changed, worst


def _fold_layer(
    layer: str, place: str, home: Mapping[str, TensorFile], maps: Maps, dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], Exactness]:
    weights = LayerWeights(*(home[name].read(name) for name in _names(layer, _READ)))
    both = maps(place, weights.dim)
    folded = weights.wide().fold(*both)
    stored = folded.stored(weights, dtype)
    values = (stored.to_k, stored.to_v, stored.bias)
    changed = dict(zip(_names(layer, _FOLDED), values, strict=True))
    return changed, measure(weights, folded, stored, *both)


def _names(layer: str, parts: Sequence[str]) -> list[str]:
    return [f"{layer}.{part}" for part in parts]


def _check(layers: Mapping[str, str], home: Mapping[str, TensorFile], where: Path) -> None:
    """Refuse what is no Stable Diffusion, or whose weights are packed."""
    if not layers:
        raise ModelError(f"{where} has no attention as Stable Diffusion 1, 2 and XL have it")
    for name in (name for layer in layers for name in _names(layer, _READ)):
        if name not in home:
            raise ModelError(f"{where} has no {name}: it is another kind of model, or incomplete")
        dtype = home[name].entries[name][0]
        if dtype not in ("F16", "BF16", "F32", "F64"):
            raise ModelError(f"{where} is quantised ({name} in {dtype}): give the original")


def told(stack: Choices) -> list[dict[str, Any]]:
    """What is noted of hypernetworks in a file that they went into."""
    return [
        {"name": name_of(net), "step": net.provenance.step, "strength": str(strength)}
        for net, strength in stack
    ]


def _note(file: TensorFile, stack: Choices) -> dict[str, str]:
    """The file's metadata, and what was folded into it."""
    return {**file.metadata, METADATA: json.dumps(told(stack))}


def _file(base: Path, stack: Choices, output: Path, dtype: torch.dtype | None) -> Exactness:
    file = TensorFile.open(base)
    changed, exactness = fold_files([file], stack, base, dtype)
    write(output, (file.entry(name, changed) for name in file.entries), _note(file, stack))
    return exactness


def _folder_to_file(
    base: Path, stack: Choices, output: Path, dtype: torch.dtype | None
) -> Exactness:
    files = weights_of(base, "unet")[0]
    changed, exactness = fold_files(files, stack, base, dtype)
    write(output, entries_of(base, files, changed), _note(files[0], stack))
    return exactness


def _folder(base: Path, stack: Choices, output: Path, dtype: torch.dtype | None) -> Exactness:
    """Written beside under another name, so that half a folder is never taken for a whole one."""
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise OptionError(f"{output} is there already and not empty: choose another -o")
    worst = Exactness(0.0, 0.0)
    sets = weights_of(base, "unet")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
            folder = Path(scratch) / output.name
            _copy_rest(base, folder)
            for files in sets:
                changed, exactness = fold_files(files, stack, base, dtype)
                worst = worst.worst(exactness)
                for file in files:
                    entries = (file.entry(name, changed) for name in file.entries)
                    write(folder / "unet" / file.path.name, entries, _note(file, stack))
            if output.exists():
                output.rmdir()
            folder.rename(output)
    except OSError as error:
        raise StorageError(
            f"cannot write {output}: {error.strerror or error}. Free some space or choose another "
            "-o."
        ) from error
    return worst


def _copy_rest(base: Path, folder: Path) -> None:
    """Copy all but the UNet's weights, and weights at the top, which belong to no part."""
    paths = [path for path in sorted(base.rglob("*")) if path.is_file()]
    for path in tqdm(paths, "copying", unit="file", delay=1, leave=False):
        inside = path.relative_to(base)
        weights = path.suffix in (".safetensors", *_FOREIGN_WEIGHTS)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if weights and (len(inside.parts) == 1 or inside.parts[0] == "unet"):
            continue
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / inside)
