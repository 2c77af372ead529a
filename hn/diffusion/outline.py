"""A base model by its configurations alone: what it could be asked, and how large it is. No weight
is read.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import HfApi
from transformers import CLIPTextConfig, CLIPTextModel

from hn.diffusion.attention import context_dims
from hn.diffusion.layout import is_single_file, reads_canvas
from hn.diffusion.objective import Prediction
from hn.diffusion.single_file.reading import read_architecture
from hn.errors import ModelError
from hn.hub_access import remedied

_FILES = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}


@dataclass(frozen=True)
class Outline:
    """The configurations of the parts of a base model, as JSON values."""

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
            parts = {"unet": found.unet, "vae": found.vae, "text_encoder": found.text}
            return cls(name, {**parts, "scheduler": {}})
        return cls(name, {part: _read(name, file, revision) for part, file in _FILES.items()})

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The UNet without memory for its weights."""
        return self._made("unet", UNet2DConditionModel.from_config)

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder, likewise."""
        return self._made("vae", AutoencoderKL.from_config)

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        """The text encoder, likewise."""
        return self._made(
            "text_encoder", lambda values: CLIPTextModel(CLIPTextConfig.from_dict(values))
        )

    @property
    def dims(self) -> tuple[int, ...]:
        """Every context width of the UNet, ascending."""
        return context_dims(self.unet)

    @property
    def text_layers(self) -> int:
        """How many layers the text encoder has."""
        return int(self.parts["text_encoder"].get("num_hidden_layers", 12))

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
    path = Path(name) / file
    if not Path(name).is_dir():
        with remedied(f"{file} of {name} cannot be fetched"):
            path = Path(HfApi().hf_hub_download(name, file, revision=revision))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is no configuration: it holds a {type(found).__name__}")
    return found
