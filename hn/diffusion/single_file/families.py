"""The Stable Diffusions there are, and what no name and no shape in their files tells."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hn.diffusion.single_file.names import UNET
from hn.diffusion.single_file.source import Shapes
from hn.diffusion.single_file.texts import TextLayout, in_open_clip, in_transformers
from hn.errors import ModelError


@dataclass(frozen=True)
class Family:
    """`texts`: its text encoders, by what diffusers' folders call them; `scaling`: of latents;
    `side`: of the latents it was trained on. `heads`: of every layer of the UNet's attention, else
    each head has 64 channels. `time_ids`: how many numbers tell it sizes and places.
    """

    name: str
    texts: Mapping[str, TextLayout]
    scaling: float
    side: int
    heads: int | None = None
    time_ids: int = 0

    @property
    def is_second(self) -> bool:
        """Whether it is Stable Diffusion 2, of which some predict noise, and some velocity."""
        return self.name == "Stable Diffusion 2"


SD_1 = Family(
    "Stable Diffusion 1",
    {"text_encoder": TextLayout("cond_stage_model.transformer.", in_transformers)},
    scaling=0.18215,
    side=64,
    heads=8,
)
SD_2 = Family(
    "Stable Diffusion 2",
    {"text_encoder": TextLayout("cond_stage_model.model.", in_open_clip, unread=1)},
    scaling=0.18215,
    side=64,
)
SD_2_TURBO = replace(
    SD_2,
    texts={"text_encoder": TextLayout("conditioner.embedders.0.model.", in_open_clip, unread=1)},
)
XL = Family(
    "Stable Diffusion XL",
    {
        "text_encoder": TextLayout("conditioner.embedders.0.transformer.", in_transformers),
        "text_encoder_2": TextLayout("conditioner.embedders.1.model.", in_open_clip, True),
    },
    scaling=0.13025,
    side=128,
    time_ids=6,
)
XL_REFINER = Family(
    "refiner of Stable Diffusion XL",
    {"text_encoder_2": TextLayout("conditioner.embedders.0.model.", in_open_clip, True)},
    scaling=0.13025,
    side=128,
    time_ids=5,
)
FAMILIES = (SD_1, SD_2, SD_2_TURBO, XL, XL_REFINER)


def family_of(shapes: Shapes, where: str) -> Family:
    """Which one a file is of, by its text encoders, and whether its UNet is told numbers. Raises
    `ModelError` for what is none.
    """
    if not any(name.startswith(UNET) for name in shapes):
        what = "a LoRA" if any("lora" in name for name in shapes) else "another kind of file"
        raise ModelError(f"{where} is no Stable Diffusion in a single file, but {what}")
    told = any(name.startswith(f"{UNET}label_emb.") for name in shapes)
    for family in FAMILIES:
        present = any(layout.is_in(shapes) for layout in family.texts.values())
        if present and (family.time_ids > 0) == told:
            return family
    raise ModelError(
        f"{where} holds a UNet without the text encoders of its kind: give a whole Stable "
        "Diffusion 1, 2 or XL"
    )
