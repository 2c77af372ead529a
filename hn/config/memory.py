"""The settings of memory; standard library only."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What is kept in memory while training, beside gradient_checkpointing."""

    memory_budget_gib: float | None = None
    """Use at most so much: what is computed again, and so the time, is chosen to fit, and said."""
    frozen_aware: Literal["auto", "on", "off"] = "auto"
    """Let the frozen layers keep only what they must: the same result in less memory. auto: where
    memory is short (gradient_checkpointing, a GPU that is too small), or where it costs no time."""
    offload_activations: bool = False
    """Keep what the backward pass needs in the host's memory: slow, when all else does not fit."""
    quantize_base: Literal["none", "fp8", "int8", "nf4"] = "none"
    """Store the frozen UNet in fewer bits, which changes its predictions a little: fp8 halves
    bfloat16, anywhere; int8 and nf4 (bitsandbytes, on a GPU) leave convolutions as they are."""
