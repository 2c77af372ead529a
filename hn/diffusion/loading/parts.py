"""The parts of a base model, and how they come from a folder or from the hub."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hn.diffusion.loading.layout import check_layout, layout_of
from hn.diffusion.memory.quantisation import Quantisation, loading_options
from hn.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Parts:
    """UNet and text encoders in the precision of the computation, the autoencoder in float32.

    The refiner of Stable Diffusion XL has the second text encoder only, 1 and 2 the first.
    `zeros_for_empty`: what an empty negative prompt says is zeros; None: as it was published.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Any
    text_encoder: CLIPTextModel | None = None
    tokenizer: CLIPTokenizer | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None
    zeros_for_empty: bool | None = None

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
        layout = layout_of(name, revision)
        at: dict[str, Any] = {"revision": revision}
        source = {**at, "variant": variant}
        quantised = loading_options(quantisation, dtype)
        with _loading("pretrained_model_name_or_path", name, "of a Stable Diffusion 1, 2 or XL"):
            return cls(
                unet=UNet2DConditionModel.from_pretrained(
                    name, subfolder="unet", torch_dtype=dtype, **source, **quantised
                ),
                vae=AutoencoderKL.from_pretrained(
                    name, subfolder="vae", torch_dtype=torch.float32, **source
                ),
                scheduler=_load_scheduler(name, **at),
                zeros_for_empty=layout.zeros_for_empty,
                **_load_texts(name, layout.texts, dtype, **source),
            )


def _load_texts(
    name: str, texts: tuple[str, ...], dtype: torch.dtype, *, variant: str | None, **at: Any
) -> dict[str, Any]:
    """Text encoders and their tokenizers, by the names of `Parts`."""
    found: dict[str, Any] = {}
    for part in texts:
        kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
        found[part] = kind.from_pretrained(name, subfolder=part, dtype=dtype, variant=variant, **at)
        tokenizer = part.replace("text_encoder", "tokenizer")
        found[tokenizer] = CLIPTokenizer.from_pretrained(name, subfolder=tokenizer, **at)
    return found


def _load_scheduler(name: str, **at: Any) -> Any:
    """As DDIM, whichever it is: of that of Stable Diffusion XL, Euler, noise and steps are kept.

    What DDIM asks beyond it is as in all Stable Diffusions, where its own defaults would clip.
    """
    found: Any = DDIMScheduler.load_config(name, subfolder="scheduler", **at)
    return DDIMScheduler.from_config({"clip_sample": False, "set_alpha_to_one": False, **found})


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
