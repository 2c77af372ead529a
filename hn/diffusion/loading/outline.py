"""A base model by its configurations alone: what it could be asked, and how large it is. No weight
is read.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hn.diffusion.attention import context_dims
from hn.diffusion.loading.layout import is_single_file, layout_of, located, parsed, reads_canvas
from hn.diffusion.objective import Prediction
from hn.diffusion.single_file.reading import read_architecture
from hn.errors import ModelError
from hn.hub_access import remedied

_FILES = {
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}


@dataclass(frozen=True)
class Outline:
    """The configurations of the parts of a base model, as JSON values; not of its tokenizers."""

    name: str
    parts: dict[str, dict[str, Any]]

    @classmethod
    def read(
        cls, name: str, revision: str | None = None, prediction: Prediction | None = None
    ) -> "Outline":
        """Of a folder, a hub id or a single file, of which `prediction` is told if it is.

        Raises `ModelError`, or `HubError` where the hub says no.
        """
        if is_single_file(name):
            found = read_architecture(Path(name), prediction)
            parts = {"unet": found.unet, "vae": found.vae, "scheduler": found.scheduler}
            return cls(name, {**parts, **found.texts})
        unet = _read(name, "unet/config.json", revision)
        parts = [part for part in layout_of(name, revision, unet).parts if part in _FILES]
        rest = {part: _read(name, _FILES[part], revision) for part in parts}
        return cls(name, {"unet": unet, **rest})

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The UNet without memory for its weights."""
        return self._made("unet", UNet2DConditionModel.from_config)

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder, likewise."""
        return self._made("vae", AutoencoderKL.from_config)

    @property
    def texts(self) -> list[dict[str, Any]]:
        """The configurations of its text encoders: one, or two of a Stable Diffusion XL."""
        return [it for part, it in self.parts.items() if part.startswith("text_encoder")]

    @property
    def dims(self) -> tuple[int, ...]:
        """Every context width of the UNet, ascending."""
        return context_dims(self.unet)

    @cached_property
    def text_weights(self) -> int:
        """How many weights its text encoders have; the second one projects what it pools."""
        kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
        models = [
            self._made(part, lambda values, kind=kind: kind(CLIPTextConfig(**values)))
            for part, kind in kinds.items()
            if part in self.parts
        ]
        return sum(weight.numel() for model in models for weight in model.parameters())

    @property
    def text_layers(self) -> int:
        """How many layers the text encoder has; of two, the one with fewer."""
        return min(int(text.get("num_hidden_layers", 12)) for text in self.texts)

    @property
    def tokens(self) -> int:
        """How long a chunk of a prompt is, with its start and end."""
        return min(int(text.get("max_position_embeddings", 77)) for text in self.texts)

    @property
    def downscaling(self) -> int:
        """How many pixels a latent stands for, along each side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def timesteps(self) -> int:
        """How many timesteps there are."""
        return int(self.parts["scheduler"].get("num_train_timesteps", 1000))

    @property
    def inpainting(self) -> bool:
        """Whether its UNet reads a mask and a picture, too. Raises `ModelError` for others yet."""
        latents = int(self.parts["vae"].get("latent_channels", 4))
        return reads_canvas(int(self.parts["unet"].get("in_channels", 4)), latents, self.name)

    @property
    def prediction(self) -> str:
        """What the scheduler says is predicted, or means by saying nothing."""
        return str(self.parts["scheduler"].get("prediction_type", "epsilon"))

    def _made(self, part: str, make: Any) -> Any:
        try:
            with torch.device("meta"):
                return make(self.parts[part])
        except Exception as error:  # of any configuration: what its library raises
            raise ModelError(
                f"{self.name}: the configuration of its {part} describes no model: {error}"
            ) from error


def _read(name: str, file: str, revision: str | None) -> dict[str, Any]:
    with remedied(f"{file} of {name} cannot be fetched"):
        return parsed(located(name, file, revision))
