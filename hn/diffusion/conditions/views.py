"""What of a picture is seen, and the numbers that say so to Stable Diffusion XL.

    time_ids([View((1920, 1080), (228, 0), (1024, 1024))], 6)  # [[1080, 1920, 0, 228, 1024, 1024]]

arXiv 2307.01952, 2.2: height and width of the picture before it was resized, top and left of what
was cut out of it then, height and width of that. So small pictures are learnt as small ones, and
what is drawn says it came from a large one. The refiner is told of a score of beauty in place of
the last two.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from hn.errors import ModelError

SIZES = 6
SCORED = 5  # numbers of the refiner
# Scores of what the refiner is led to, and away from; diffusers' and the web UI's.
BEAUTIFUL, PLAIN = 6.0, 2.5


class View(NamedTuple):
    """In pixels, width first: a picture as it is seen upright, the corner of what was cut out of
    the resized picture, and the size of that. What was padded was not cut: its corner is 0, 0.
    """

    picture: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Self:
        """Of a picture of this size, as it is drawn."""
        return cls(size, (0, 0), size)


def time_ids(views: Iterable[View], numbers: int, score: float = BEAUTIFUL) -> Tensor:
    """Of B pictures (B, numbers), in float32: in half precision large sizes would be rounded."""
    rows = []
    for (width, height), (left, top), (across, down) in views:
        told = (score,) if numbers == SCORED else (down, across)
        rows.append([height, width, top, left, *told])
    return torch.tensor(rows, dtype=torch.float32)


def numbers_of(unet: Mapping[str, Any], texts: Sequence[Mapping[str, Any]], name: str) -> int:
    """How many numbers a UNet wants to be told, by its configuration: 0 for Stable Diffusion 1, 2.

    Raises `ModelError` where the configurations of the text encoders, the pooled one last, do not
    go with it.
    """
    if (kind := unet.get("addition_embed_type")) is None:
        return 0
    if kind != "text_time":
        raise ModelError(
            f"the UNet of {name} has addition_embed_type '{kind}'; supported are text_time, that "
            "of Stable Diffusion XL, and none"
        )
    try:
        widths = [int(text["hidden_size"]) for text in texts]
        pooled, each = int(texts[-1]["projection_dim"]), int(unet["addition_time_embed_dim"])
        wanted = int(unet["projection_class_embeddings_input_dim"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the configurations of the UNet and the text encoders of {name} lack a number that "
            f"Stable Diffusion XL has: {error}"
        ) from error
    if (width := unet.get("cross_attention_dim")) != sum(widths):
        raise ModelError(
            f"the UNet of {name} reads contexts of cross_attention_dim {width}, but its text "
            f"encoders make {sum(widths)} (hidden_size {' + '.join(map(str, widths))}): they are "
            "of another model"
        )
    for numbers in (SIZES, SCORED):
        if pooled + numbers * each == wanted:
            return numbers
    raise ModelError(
        f"the UNet of {name} has projection_class_embeddings_input_dim {wanted}, but the pooled "
        f"text (projection_dim {pooled} of text_encoder_2) and {SIZES} sizes of "
        f"addition_time_embed_dim {each} make {pooled + SIZES * each}, with the {SCORED} of a "
        f"refiner {pooled + SCORED * each}: they are of another model"
    )
