"""The parts of a base model, and how they come from a folder or from the hub."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hn.diffusion.layout import check_layout
from hn.diffusion.memory.quantisation import Quantisation, loading_options
from hn.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Parts:
    """UNet and text encoders in the precision of the computation, the autoencoder in float32.

    The refiner of Stable Diffusion XL has the second text encoder only, 1 and 2 the first.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Any
    text_encoder: CLIPTextModel | None = None
    tokenizer: CLIPTokenizer | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None,
        variant: str | None,
        quantisation: Quantisation,
        dtype: torch.dtype,
    ) -> Self:
        """Raises `ModelError` naming what is missing, before anything large is read."""
        check_layout(name, revision=revision, variant=variant)
        at: dict[str, Any] = {"revision": revision}
        source = {**at, "variant": variant}
        quantised = loading_options(quantisation, dtype)
        with _loading("pretrained_model_name_or_path", name, "of a Stable Diffusion 1 or 2"):
            return cls(
                unet=UNet2DConditionModel.from_pretrained(
                    name, subfolder="unet", torch_dtype=dtype, **source, **quantised
                ),
                vae=AutoencoderKL.from_pretrained(
                    name, subfolder="vae", torch_dtype=torch.float32, **source
                ),
                text_encoder=CLIPTextModel.from_pretrained(
                    name, subfolder="text_encoder", dtype=dtype, **source
                ),
                tokenizer=CLIPTokenizer.from_pretrained(name, subfolder="tokenizer", **at),
                scheduler=DDIMScheduler.from_pretrained(name, subfolder="scheduler", **at),
            )


def load_pretrained_vae(name: str) -> AutoencoderKL:
    """An autoencoder alone: the folder or repository is it, or has it as `vae`. `ModelError`."""
    with _loading("pretrained_vae_model_name_or_path", name, "of an autoencoder (AutoencoderKL)"):
        try:
            return AutoencoderKL.from_pretrained(name, torch_dtype=torch.float32)
        except OSError:
            return AutoencoderKL.from_pretrained(name, subfolder="vae", torch_dtype=torch.float32)


@contextmanager
def _loading(setting: str, name: str, what: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # diffusers passes what huggingface_hub says it does not read any more.
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{setting} '{name}' cannot be loaded: {reason} It must be a diffusers folder or hub "
            f"id {what}, or a single file."
        ) from error
