"""The names that a single file of Stable Diffusion 1 has for the tensors of a diffusers folder.

The original code numbers the UNet's blocks through, and calls the autoencoder's attention by single
letters, as convolutions of size 1.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from hn.diffusion.surgery.tensor_files import Entry, TensorFile
from hn.errors import ModelError

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",
}  # fmt: skip


@dataclass(frozen=True)
class Names:
    """What the tensors of a folder are called; `layers`: of each block of the UNet, `levels`: of
    the autoencoder.
    """

    folder: Path
    layers: int
    levels: int

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read the folder's configs. Raises `ModelError` for what is no Stable Diffusion 1."""
        unet, vae, text = (_config(folder, part) for part in ("unet", "vae", "text_encoder"))
        layers = unet.get("layers_per_block", 2)
        if (
            (folder / "text_encoder_2").exists()
            or text.get("hidden_act") != "quick_gelu"
            or not isinstance(layers, int)
        ):
            raise ModelError(
                f"{folder} is no Stable Diffusion 1, whose single files alone keep the text "
                "encoder as diffusers does: give the single file itself as the base, or a folder "
                "as -o"
            )
        return cls(folder, layers, len(vae["block_out_channels"]))

    def entries(self, unet: Sequence[TensorFile], changed: Mapping[str, Tensor]) -> Iterator[Entry]:
        """All tensors of the three parts, those of the UNet as `changed`. Raises `ModelError`."""
        renamed: list[Entry] = []
        for file in unet:
            samplers = {name for name in file.entries if ".attentions." in name}
            with_attention = {name.partition(".attentions.")[0] for name in samplers}
            for name in file.entries:
                new = UNET + self.unet(name, with_attention)
                renamed.append(file.entry(name, changed)._replace(name=new))
        vae = _only(self.folder / "vae", "diffusion_pytorch_model.safetensors")
        renamed += [self._vae_entry(vae.entry(name)) for name in vae.entries]
        text = _only(self.folder / "text_encoder", "model.safetensors")
        for name in text.entries:
            inner = name.removeprefix("text_model.")
            renamed.append(text.entry(name)._replace(name=f"{TEXT}text_model.{inner}"))
        return iter(sorted(renamed, key=lambda entry: -int(entry.dtype.lstrip("FBIUC") or 8)))

    def unet(self, name: str, with_attention: set[str]) -> str:
        """The name of a tensor of the UNet; a block's upsampler comes after what else it has."""
        if match := _BLOCK.fullmatch(name):
            return self._block(match, with_attention)
        if match := _MIDDLE.fullmatch(name):
            kind, number, rest = match.groups()
            place = 1 if kind == "attentions" else 2 * int(number)
            return f"middle_block.{place}.{rest if place == 1 else _inner(rest, _RESNET)}"
        return _inner(name, _TOP)

    def _block(self, match: re.Match[str], with_attention: set[str]) -> str:
        way, block, kind, number, rest = match.groups()
        place = int(block) * (self.layers + 1) + (way == "down")
        outer = f"{'input' if way == 'down' else 'output'}_blocks"
        if kind == "resnets":
            return f"{outer}.{place + int(number)}.0.{_inner(rest, _RESNET)}"
        if kind == "attentions":
            return f"{outer}.{place + int(number)}.1.{rest}"
        place += self.layers
        if kind == "downsamplers":
            return f"{outer}.{place}.0.{rest.replace('conv.', 'op.')}"
        after = 2 if f"{way}_blocks.{block}" in with_attention else 1
        return f"{outer}.{place}.{after}.{rest}"

    def _vae_entry(self, entry: Entry) -> Entry:
        name = VAE + self.vae(entry.name)
        if ".attn_1." in name and name.endswith(".weight") and len(entry.shape) == 2:
            shape = (*entry.shape, 1, 1)
            return entry._replace(name=name, shape=shape, load=partial(_reshaped, entry, shape))
        return entry._replace(name=name)

    def vae(self, name: str) -> str:
        """The name of a tensor of the autoencoder."""
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if match := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)", name):
            return f"{match[1]}.mid.attn_1.{_inner(match[2], _VAE_ATTENTION)}"
        match = re.fullmatch(r"(\w+)\.(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
        if match is None:
            return name
        coder, way, block, kind, number, rest = match.groups()
        level = int(block) if way == "down" else self.levels - 1 - int(block)
        inner = f"block.{number}" if kind == "resnets" else f"{way}sample"
        return f"{coder}.{way}.{level}.{inner}.{rest}"


def _reshaped(entry: Entry, shape: tuple[int, ...]) -> Tensor:
    return entry.load().reshape(shape)


def _inner(name: str, known: Mapping[str, str]) -> str:
    """`name` with its beginning called otherwise. Raises `ModelError` for an unknown one."""
    stem, _, kind = name.rpartition(".")
    if stem not in known:
        raise ModelError(f"a single file of Stable Diffusion 1 has no place for the tensor {name}")
    return f"{known[stem]}.{kind}"


def _config(folder: Path, part: str) -> dict[str, Any]:
    path = folder / part / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error


def _only(folder: Path, usual: str) -> TensorFile:
    """The weights of a part: the usual file, or that of a variant."""
    found = [folder / usual] if (folder / usual).exists() else sorted(folder.glob("*.safetensors"))
    if not found:
        raise ModelError(f"{folder} has no {usual}")
    return TensorFile.open(found[0])
