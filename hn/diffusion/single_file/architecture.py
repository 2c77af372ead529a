"""What a single file is of, read from the names and shapes of its tensors: diffusers' configs."""

import re
from dataclasses import dataclass
from typing import Any, Self

from hn.diffusion.objective import Prediction
from hn.diffusion.single_file.families import Family, family_of
from hn.diffusion.single_file.marks import prediction_of, scheduler_config
from hn.diffusion.single_file.names import UNET, VAE
from hn.diffusion.single_file.source import Shapes, Source
from hn.errors import ModelError

_HEAD = 64  # channels, where a family does not count heads
_SIDE_2_V = 96  # of latents: the Stable Diffusion 2 of 768 pixels, which predicts velocity


@dataclass(frozen=True)
class Architecture:
    """The configs of the parts, as diffusers and transformers want them; `texts` by their names."""

    family: Family
    unet: dict[str, Any]
    vae: dict[str, Any]
    texts: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]

    @classmethod
    def of(cls, source: Source, given: Prediction | None) -> Self:
        """`given`: what it predicts, if that is known better than the file says.

        Raises `ModelError` for what is no Stable Diffusion, or only parts of one.
        """
        shapes = source.shapes
        family = family_of(shapes, str(source.path))
        prediction = prediction_of(source, family, given)
        try:
            texts = {name: layout.config(shapes) for name, layout in family.texts.items()}
            unet = _unet(shapes, family, texts)
            vae = vae_config(shapes, family.scaling)
        except (KeyError, IndexError) as error:
            raise ModelError(
                f"{source.path} is incomplete: a {family.name} in a single file holds "
                f"{error.args[0]}"
            ) from error
        unet["sample_size"] = family.side
        if family.is_second and prediction == "v_prediction":
            unet["sample_size"] = _SIDE_2_V
        return cls(family, unet, vae, texts, scheduler_config(source, prediction))


def _unet(shapes: Shapes, family: Family, texts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Levels end with a downsampler; each has as many resnets, with a transformer each or none."""
    levels: list[list[int]] = [[]]
    depths: list[int] = []
    first = f"{UNET}input_blocks."
    for number in range(1, _count(shapes, first)):
        block = f"{first}{number}."
        if f"{block}0.op.weight" in shapes:
            levels.append([])
            continue
        levels[-1].append(shapes[f"{block}0.out_layers.3.weight"][0])
        if len(depths) < len(levels):
            depths.append(_count(shapes, f"{block}1.transformer_blocks."))
    channels = [level[-1] for level in levels]
    kinds = ["CrossAttn" if depth else "" for depth in depths]
    depths[-1] = depths[-1] or _count(shapes, f"{UNET}middle_block.1.transformer_blocks.")
    cross = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    return {
        "in_channels": shapes[f"{first}0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        "cross_attention_dim": cross,
        "use_linear_projection": any(
            len(shape) == 2 for name, shape in shapes.items() if name.endswith("proj_in.weight")
        ),
        "attention_head_dim": family.heads or [max(1, width // _HEAD) for width in channels],
        "upcast_attention": family.is_second,  # of some of which scores overflow half precision
        **(_additions(shapes, family, texts) if family.time_ids else {}),
    }


def _additions(shapes: Shapes, family: Family, texts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The pooled text and the embeddings of some numbers are read side by side."""
    width = shapes[f"{UNET}label_emb.0.0.weight"][1]
    pooled = texts["text_encoder_2"]["projection_dim"]
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (width - pooled) // family.time_ids,
        "projection_class_embeddings_input_dim": width,
    }


def vae_config(shapes: Shapes, scaling: float, prefix: str = VAE) -> dict[str, Any]:
    """The autoencoder's config. Raises `KeyError` with what is missing."""
    levels = range(_count(shapes, f"{prefix}encoder.down."))
    channels = [shapes[f"{prefix}encoder.down.{it}.block.0.conv1.weight"][0] for it in levels]
    return {
        "latent_channels": shapes[f"{prefix}post_quant_conv.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": _count(shapes, f"{prefix}encoder.down.0.block."),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "scaling_factor": scaling,
    }


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbers follow the prefix among the names."""
    following = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for name in shapes if (match := following.match(name))})
