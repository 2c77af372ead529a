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

    `tokens` of a context; `resolution` of a picture in pixels, `downscaling` times its latents'.
    """

    config: dict[str, Any]
    resolution: int
    tokens: int = 77
    downscaling: int = 8
    batch: int = 1
    folder: str | None = None


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
    # Without the embedding of sizes and pooled text, which no hypernetwork reads.
    "sdxl": Shape(
        {
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", *_CROSS_LEVELS[0][:2]),
            "up_block_types": (*_CROSS_LEVELS[1][:2], "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
        },
        resolution=1024,
    ),
}
