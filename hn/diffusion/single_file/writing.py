"""From a diffusers folder to a single file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from hn.diffusion.loading.layout import parsed
from hn.diffusion.single_file.families import FAMILIES, SD_1, SD_2, Family
from hn.diffusion.single_file.marks import marks_of
from hn.diffusion.single_file.names import UNET, VAE, UNetNames, vae_name
from hn.diffusion.surgery.tensor_files import Entry, TensorFile
from hn.errors import ModelError

_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
_VARIANT = r"(\.\w+)?(-\d{5}-of-\d{5})?\.safetensors"


def weights_of(folder: Path, part: str) -> list[list[TensorFile]]:
    """The files of a part's weights: of each variant (fp16, say), those that belong together.

    The one without a variant comes first. Raises `ModelError` if there is none.
    """
    stem = _STEMS.get(part, "model")
    wanted = re.compile(re.escape(stem) + _VARIANT)
    found = [
        (match[1] or "", path)
        for path in sorted((folder / part).glob("*.safetensors"))
        if (match := wanted.fullmatch(path.name))
    ]
    if not found:
        raise ModelError(
            f"{folder} has no {part}/{stem}.safetensors: it must be a diffusers folder with "
            "weights as .safetensors"
        )
    groups = groupby(sorted(found), key=lambda item: item[0])
    return [[TensorFile.open(path) for _, path in group] for _, group in groups]


def entries_of(
    folder: Path, unet: Sequence[TensorFile], changed: Mapping[str, Tensor]
) -> list[Entry]:
    """All tensors of a folder's parts by the names of a single file, those of the UNet as
    `changed`. Raises `ModelError` for a folder that single files have no place for.
    """
    family = _family_of(folder)
    entries = [
        *_unet_entries(folder, unet, changed),
        *_vae_entries(folder),
        *marks_of(_config(folder, "scheduler", "scheduler_config.json")),
    ]
    for part, layout in family.texts.items():
        entries += layout.entries(_held(weights_of(folder, part)[0]))
    return sorted(entries, key=lambda entry: -int(entry.dtype.lstrip("FBIUC") or 8))


def _family_of(folder: Path) -> Family:
    """By which text encoders there are; 1 and 2 differ by how theirs computes."""
    present = {part.name for part in folder.glob("text_encoder*")}
    possible = [family for family in FAMILIES if family.texts.keys() == present]
    if SD_1 not in possible:
        return possible[0] if possible else _unknown(folder)
    activation = _config(folder, "text_encoder").get("hidden_act")
    families = {family.texts["text_encoder"].activation: family for family in (SD_1, SD_2)}
    return families.get(str(activation)) or _unknown(folder)


def _unknown(folder: Path) -> NoReturn:
    raise ModelError(
        f"{folder} has not the text encoders of Stable Diffusion 1, 2 or XL, which alone have a "
        "place in single files: give a folder as -o"
    )


def _unet_entries(
    folder: Path, unet: Sequence[TensorFile], changed: Mapping[str, Tensor]
) -> Iterator[Entry]:
    layers = _config(folder, "unet").get("layers_per_block", 2)
    if not isinstance(layers, int):
        raise ModelError(
            f"{folder}: layers_per_block is {layers}, where single files have as many in each "
            "block: give a folder as -o"
        )
    names = UNetNames.of(layers, (name for file in unet for name in file.entries))
    for file in unet:
        for name in file.entries:
            yield file.entry(name, changed)._replace(name=UNET + names(name))


def _vae_entries(folder: Path) -> Iterator[Entry]:
    levels = len(_config(folder, "vae")["block_out_channels"])
    for inner, entry in _held(weights_of(folder, "vae")[0]).items():
        name = VAE + vae_name(inner, levels)
        shape = entry.shape
        if ".attn_1." in name and name.endswith(".weight") and len(shape) == 2:
            shape = (*shape, 1, 1)  # where it is a convolution
        yield Entry(name, entry.dtype, shape, partial(_reshaped, entry, shape))


def _held(files: Sequence[TensorFile]) -> dict[str, Entry]:
    return {name: file.entry(name) for file in files for name in file.entries}


def _reshaped(entry: Entry, shape: tuple[int, ...]) -> Tensor:
    return entry.load().reshape(shape)


def _config(folder: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    return parsed(folder / part / name)
