"""What single files call the tensors that diffusers' folders have under other names.

The original code numbers the UNet's blocks through, and calls the autoencoder's attention by single
letters.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from hn.errors import ModelError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
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
class UNetNames:
    """The names of a UNet's tensors, without `UNET`; `layers`: of each block on the way down,
    `attended`: the blocks with attention.
    """

    layers: int
    attended: frozenset[str]

    @classmethod
    def of(cls, layers: int, names: Iterable[str]) -> Self:
        """Of a UNet that has these, as diffusers calls them."""
        with_attention = (name for name in names if ".attentions." in name)
        return cls(layers, frozenset(name.partition(".attentions.")[0] for name in with_attention))

    def __call__(self, name: str) -> str:
        """Raises `ModelError` for a tensor that single files have no place for."""
        if match := _BLOCK.fullmatch(name):
            return self._block(match)
        if match := _MIDDLE.fullmatch(name):
            kind, number, rest = match.groups()
            place = 1 if kind == "attentions" else 2 * int(number)
            return f"middle_block.{place}.{rest if place == 1 else _inner(rest, _RESNET)}"
        return _inner(name, _TOP)

    def _block(self, match: re.Match[str]) -> str:
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
        after = 2 if f"{way}_blocks.{block}" in self.attended else 1  # an upsampler comes last
        return f"{outer}.{place}.{after}.{rest}"


def vae_name(name: str, levels: int) -> str:
    """The name of a tensor of an autoencoder of so many levels, without `VAE`."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if match := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)", name):
        return f"{match[1]}.mid.attn_1.{_inner(match[2], _VAE_ATTENTION)}"
    match = re.fullmatch(r"(\w+)\.(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        return name
    coder, way, block, kind, number, rest = match.groups()
    level = int(block) if way == "down" else levels - 1 - int(block)
    inner = f"block.{number}" if kind == "resnets" else f"{way}sample"
    return f"{coder}.{way}.{level}.{inner}.{rest}"


def _inner(name: str, known: Mapping[str, str]) -> str:
    """`name` with its beginning called otherwise. Raises `ModelError` for an unknown one."""
    stem, _, kind = name.rpartition(".")
    if stem not in known:
        raise ModelError(
            f"a Stable Diffusion in a single file has no place for the tensor {name}: keep it as a "
            "diffusers folder"
        )
    return f"{known[stem]}.{kind}"
