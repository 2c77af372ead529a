"""The settings of speed; standard library only."""

from dataclasses import dataclass
from typing import Literal

Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """How a step is computed. What is learnt differs by rounding only."""

    stack_projections: bool = False
    """Compute keys and values of the text for all layers in two large products, where the base
    model's weights allow it: fewer operations to start, for 40 MiB more a picture (SD 1, 512)."""
    torch_compile: bool = False
    """Compile the UNet's transformer and residual blocks for training. The first batch of every
    shape is also computed without; where gradients differ, training goes on without, and says so.
    """
    torch_compile_backend: str = "inductor"
    """What compiles them, by the name that torch knows it by."""
    channels_last: Switch = "auto"
    """Let the UNet's convolutions keep channels together in memory. auto: on CUDA."""
    allow_tf32: Switch = "auto"
    """Round the factors of float32 products and convolutions to TF32, on CUDA. auto: where
    mixed_precision is bf16 or fp16, whose rounding is coarser; else torch's own choice, which is
    convolutions only."""
