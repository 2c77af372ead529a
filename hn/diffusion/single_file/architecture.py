"""What a single file is of, read from the names and shapes of its tensors: diffusers' configs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from hn.diffusion.surgery.single_file import TEXT, UNET, VAE
from hn.errors import ModelError

Family = Literal["Stable Diffusion 1", "Stable Diffusion 2"]
Shapes = Mapping[str, tuple[int, ...]]
OPEN_CLIP = "cond_stage_model.model."
_XL = "conditioner.embedders."
_HEAD = (
    64  # channels of a head, but in the UNet of Stable Diffusion 1, which has 8 heads everywhere
)
_HEADS_1 = 8
_SCALING = 0.18215  # of latents


@dataclass(frozen=True)
class Architecture:
    """The configs of the parts, as diffusers and transformers want them."""

    family: Family
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]

    @classmethod
    def of(cls, shapes: Shapes, where: str) -> Self:
        """Raises `ModelError` for what is no Stable Diffusion 1 or 2, or only parts of one."""
        family = _family(shapes, where)
        try:
            return cls(family, _unet(shapes, family), vae_config(shapes), _text(shapes, family))
        except (KeyError, IndexError) as error:
            raise ModelError(
                f"{where} is incomplete: a {family} in a single file holds {error.args[0]}"
            ) from error


def _family(shapes: Shapes, where: str) -> Family:
    """Which one, by its text encoder. Raises `ModelError`."""
    if any(name.startswith(_XL) for name in shapes):
        raise ModelError(
            f"{where} is a Stable Diffusion XL, which is not trained for yet; take a 1 or 2"
        )
    if not any(name.startswith(UNET) for name in shapes):
        what = "a LoRA" if any("lora" in name for name in shapes) else "another kind of file"
        raise ModelError(f"{where} is no Stable Diffusion in a single file, but {what}")
    return (
        "Stable Diffusion 2"
        if any(it.startswith(OPEN_CLIP) for it in shapes)
        else ("Stable Diffusion 1")
    )


def _unet(shapes: Shapes, family: Family) -> dict[str, Any]:
    """Levels end with a downsampler; each has as many resnets, with a transformer each or none."""
    levels: list[list[int]] = [[]]
    transformers: list[int] = []
    first = f"{UNET}input_blocks."
    for number in range(1, _count(shapes, first)):
        block = f"{first}{number}."
        if f"{block}0.op.weight" in shapes:
            levels.append([])
            continue
        levels[-1].append(shapes[f"{block}0.out_layers.3.weight"][0])
        if len(transformers) < len(levels):
            transformers.append(_count(shapes, f"{block}1.transformer_blocks."))
    channels = [level[-1] for level in levels]
    cross = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    linear = any(len(s) == 2 for name, s in shapes.items() if name.endswith("proj_in.weight"))
    kinds = ["CrossAttn" if depth else "" for depth in transformers]
    return {
        "in_channels": shapes[f"{first}0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "transformer_layers_per_block": [max(1, depth) for depth in transformers],
        "cross_attention_dim": cross,
        "use_linear_projection": linear,
        "attention_head_dim": (
            _HEADS_1 if family == "Stable Diffusion 1" else [width // _HEAD for width in channels]
        ),
        "sample_size": 64,
    }


def vae_config(shapes: Shapes, prefix: str = VAE) -> dict[str, Any]:
    """The autoencoder's config. Raises `KeyError` with what is missing."""
    levels = range(_count(shapes, f"{prefix}encoder.down."))
    channels = [shapes[f"{prefix}encoder.down.{it}.block.0.conv1.weight"][0] for it in levels]
    return {
        "latent_channels": shapes[f"{prefix}post_quant_conv.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": _count(shapes, f"{prefix}encoder.down.0.block."),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "scaling_factor": _SCALING,
    }


def _text(shapes: Shapes, family: Family) -> dict[str, Any]:
    """The text encoder's config. Stable Diffusion 2 reads the last layer but one."""
    if family == "Stable Diffusion 1":
        inner, layers = f"{TEXT}text_model.", "encoder.layers."
        tokens, positions = (
            "embeddings.token_embedding.weight",
            "embeddings.position_embedding.weight",
        )
        widest, unread, activation = "0.mlp.fc1.weight", 0, "quick_gelu"
    else:
        inner, layers = OPEN_CLIP, "transformer.resblocks."
        tokens, positions = "token_embedding.weight", "positional_embedding"
        widest, unread, activation = "0.mlp.c_fc.weight", 1, "gelu"
    size, width = shapes[inner + tokens]
    return {
        "vocab_size": size,
        "hidden_size": width,
        "intermediate_size": shapes[inner + layers + widest][0],
        "num_hidden_layers": _count(shapes, inner + layers) - unread,
        "num_attention_heads": max(1, width // _HEAD),
        "max_position_embeddings": shapes[inner + positions][0],
        "hidden_act": activation,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
    }


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbers follow the prefix among the names."""
    following = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for name in shapes if (match := following.match(name))})
