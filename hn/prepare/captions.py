"""Captions of the pictures made: existing ones merged with BLIP's.

The web UI's other captioner, deepbooru, is left out: no maintained package has it.
"""

from typing import Any

import torch
from PIL import Image

from hn.errors import ModelError
from hn.prepare.settings import Settings


def merge_order(action: str, existing: str, generates: bool) -> tuple[str, ...]:
    """Which captions make the new one, in their order: of "existing" and "generated", 0 to 2.

    As the web UI does it: without an existing caption, every action takes the generated one.
    """
    if not existing or action == "ignore":
        return ("generated",) if generates else ()
    if action == "copy" or not generates:
        return ("existing",)
    return ("existing", "generated") if action == "prepend" else ("generated", "existing")


class Blip:
    """Describes pictures with a BLIP model, in float32, on the GPU if there is one."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ModelError` if the model cannot be loaded."""
        from transformers import BlipForConditionalGeneration, BlipProcessor  # takes seconds

        assert settings.blip_model is not None
        self._lengths: dict[str, Any] = {
            "num_beams": settings.blip_beams,
            "min_length": settings.blip_min_length,
            "max_length": settings.blip_max_length,
            "do_sample": False,
        }
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        name = settings.blip_model
        try:
            self._processor: Any = BlipProcessor.from_pretrained(name)
            model: Any = BlipForConditionalGeneration.from_pretrained(name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"blip_model '{name}' cannot be loaded: {reason} It must be the folder or hub id "
                "of a BLIP for captions, such as Salesforce/blip-image-captioning-base."
            ) from error
        self._model = model.to(self._device).eval()

    @torch.no_grad()
    def describe(self, picture: Image.Image) -> str:
        """The caption of one RGB picture; the same picture gives the same caption."""
        inputs = self._processor(images=picture, return_tensors="pt").to(self._device)
        tokens = self._model.generate(pixel_values=inputs["pixel_values"], **self._lengths)
        return self._processor.decode(tokens[0], skip_special_tokens=True).strip()
