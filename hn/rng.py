"""Randomness as a pure function: every draw comes from `(seed, purpose, position)`, never from a
running generator.

So a resumed run needs no saved generator state, two processes draw what one would, and a preview
disturbs nothing. The position is usually `(step, slot)`, slot being the place in the global batch.
"""

from random import Random
from typing import Any

import numpy as np
import torch

# The order is part of what a seed means: append only.
PURPOSES = (
    *("order", "variant", "latent", "caption", "noise", "crop", "heldout", "dropout"),
    *("buckets", "shards", "chunk", "prompt", "strata", "mask"),
)


def seed_of(seed: int, purpose: str, *position: int) -> int:
    """A 64-bit seed mixed from all the numbers; the same on every platform."""
    entropy: Any = [seed, PURPOSES.index(purpose), *position]
    if max(entropy) < 2**32:  # what numpy would make of it, number by number
        entropy = np.array(entropy, np.uint32)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A torch generator, on the CPU so that every device draws the same numbers."""
    return torch.Generator().manual_seed(seed_of(seed, purpose, *position))


def python_random(seed: int, purpose: str, *position: int) -> Random:
    """A generator of the standard library."""
    return Random(seed_of(seed, purpose, *position))


def numpy_random(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """A generator of numpy, for many numbers at once."""
    return np.random.default_rng(seed_of(seed, purpose, *position))


def seed_layers(seed: int, step: int, slot: int) -> None:
    """Seed what layers draw for themselves (dropout, rrelu) in this micro-batch."""
    own = seed_of(seed, "dropout", step, slot)
    if torch.accelerator.is_available():
        torch.manual_seed(own)
    else:  # torch would note for every kind of device that may come up, at a millisecond a step
        torch.default_generator.manual_seed(own)
