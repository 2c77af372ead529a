"""Pictures for regularization beside those to learn from: as many of the one as of the other.

Prior preservation, as in DreamBooth (https://arxiv.org/abs/2208.12242): a step sees both alike.
"""

import numpy as np
from numpy.typing import NDArray


def balanced(repeats: NDArray[np.integer], regularization: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The repeats (N,) of every picture, those of the fewer kind times a whole number.

    Entries are counted, so with their repeats; the factor is the quotient rounded, halves up. It
    stays as it is if there is only one kind.
    """
    own, other = _factors(repeats, regularization)
    return repeats.astype(np.int64) * np.where(regularization, other, own)


def in_words(repeats: NDArray[np.integer], regularization: NDArray[np.bool_]) -> str:
    """What `balanced` makes of these, in a line."""
    own, other = _factors(repeats, regularization)
    training, prior = _entries(repeats, regularization)
    beside = f"{training} x {own}" if own > 1 else str(training)
    return f"regularization: {prior} pictures x {other} beside {beside}"


def _factors(repeats: NDArray[np.integer], regularization: NDArray[np.bool_]) -> tuple[int, int]:
    """What the repeats of training and of regularization pictures are multiplied with."""
    training, prior = _entries(repeats, regularization)
    if not training or not prior:
        return 1, 1
    fewer, more = min(training, prior), max(training, prior)
    factor = (2 * more + fewer) // (2 * fewer)
    return (factor, 1) if training < prior else (1, factor)


def _entries(repeats: NDArray[np.integer], regularization: NDArray[np.bool_]) -> tuple[int, int]:
    """How many entries of an epoch are for training, and how many for regularization."""
    counted = repeats.astype(np.int64)
    return int(counted[~regularization].sum()), int(counted[regularization].sum())
