"""What the UNets look like whose step is measured. Their weights do not matter to its time."""

from dataclasses import dataclass
from typing import Any

from hn import demo

_CROSS_LEVELS = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
SD1: dict[str, Any] = {
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # a number of heads, as diffusers reads it
    "block_out_channels": (320, 640, 1280, 1280),
}


@dataclass(frozen=True)
class Shape:
    """A UNet by the arguments of diffusers' class, or the `folder` of one that has weights.

    `tokens` of a context; `resolution` of a picture in pixels, `downscaling` times its latents';
    `texts`: width and layers of the text encoders whose contexts stand side by side, 12 of one that
    is as wide as a context if none are given.
    """

    config: dict[str, Any]
    resolution: int
    tokens: int = 77
    downscaling: int = 8
    batch: int = 1
    folder: str | None = None
    texts: tuple[tuple[int, int], ...] = ()


_XL: dict[str, Any] = {
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", *_CROSS_LEVELS[0][:2]),
    "up_block_types": (*_CROSS_LEVELS[1][:2], "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SHAPES = {
    # No width of a level is that of the text, which the web UI could not tell apart.
    "tiny": Shape(
        {
            "cross_attention_dim": 96,
            "attention_head_dim": 4,
            "block_out_channels": (64, 128),
            "layers_per_block": 1,
            "down_block_types": _CROSS_LEVELS[0][:2],
            "up_block_types": _CROSS_LEVELS[1][:2],
        },
        resolution=128,
        batch=32,
    ),
    "demo": Shape({}, resolution=64, tokens=32, downscaling=4, batch=16, folder=str(demo.MODEL)),
    # SD 1 layer by layer, so narrow that the host's work is all there is to its time.
    "narrow": Shape(
        {**SD1, "cross_attention_dim": 48, "block_out_channels": (32, 64, 96, 96)}, resolution=64
    ),
    "sd15": Shape(SD1, resolution=512),
    # SDXL, but for the depth of its transformers and its widths.
    "tiny-xl": Shape(
        {
            **_XL,
            "cross_attention_dim": 80,
            "attention_head_dim": (2, 4, 4),
            "block_out_channels": (32, 64, 96),
            "transformer_layers_per_block": (1, 1, 2),
            "layers_per_block": 1,
        },
        resolution=128,
        batch=16,
        texts=((32, 2), (48, 2)),
    ),
    "sdxl": Shape(_XL, resolution=1024, texts=((768, 12), (1280, 32))),
}
