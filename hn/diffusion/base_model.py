"""The base model: a Stable Diffusion 1, 2 or XL from a folder, the hub or a file, frozen."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from hn.diffusion import sharding
from hn.diffusion.attention import context_dims
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.text_encoder import Syntax, TextEncoder, TextPair
from hn.diffusion.conditions.views import View, numbers_of, time_ids
from hn.diffusion.loading.layout import is_single_file, reads_canvas
from hn.diffusion.loading.noising import has_zero_terminal_snr, prediction_of, settle
from hn.diffusion.loading.parts import Parts, load_pretrained_vae
from hn.diffusion.memory.quantisation import Quantisation, check_device, store_in_float8
from hn.diffusion.objective import Prediction
from hn.diffusion.single_file.reading import load as load_file
from hn.diffusion.single_file.reading import load_vae as load_vae_file
from hn.errors import ModelError


@dataclass(frozen=True)
class Moments:
    """Latents of pictures, scaled for the UNet: their `mean` and `std` (B, C, h, w)."""

    mean: Tensor
    std: Tensor


class BaseModel:
    """The frozen parts; autoencoder and text encoder can be freed once they have done theirs."""

    def __init__(
        self,
        *,
        name: str,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: TextEncoder | TextPair,
        scheduler: DDIMScheduler,
        zeros_for_empty: bool | None = None,
    ) -> None:
        self.name = name
        self.unet = unet
        self.scheduler = scheduler
        self._vae: AutoencoderKL | None = vae
        self._vae_parked = False
        self._engine: Any = None  # DeepSpeed's, which gathers the UNet's blocks
        if vae.config.get("latents_mean") is not None:
            raise ModelError(
                f"the autoencoder of {name} shifts its latents (latents_mean), which nothing here "
                "does: only base models whose latents are merely scaled are trained for"
            )
        self._text_encoder: TextEncoder | TextPair | None = text_encoder
        texts = [it.model.config.to_dict() for it in text_encoder.encoders]
        self.numbers_told = numbers_of(unet.config, texts, name)  # of each picture's size
        pair = isinstance(text_encoder, TextPair)
        self._zeros_for_empty = pair if zeros_for_empty is None else zeros_for_empty
        self.prediction: Prediction = prediction_of(scheduler)
        self.inpainting = reads_canvas(
            unet.config["in_channels"], vae.config["latent_channels"], name
        )
        self.scaling_factor = float(vae.config["scaling_factor"])
        self.downscaling = 2 ** (len(vae.config["block_out_channels"]) - 1)
        for part in (unet, vae):
            part.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        prompt_syntax: Syntax = "plain",
        clip_skip: int = 1,
        vae: str | None = None,
        prediction: Prediction | None = None,
        zero_terminal_snr: bool = False,
        quantisation: Quantisation = "none",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load from a folder, hub id or single file, in `dtype`; the autoencoder stays in float32.

        `vae`: another autoencoder, named likewise; `prediction` and `zero_terminal_snr`: what the
        model predicts, and that it was trained down to pure noise, if its scheduler does not say
        so. Raises `ModelError` naming what is missing, before anything large is read, and
        `OptionError` if the text encoder has fewer layers than `clip_skip`, the device or the file
        cannot be quantised so, or the prediction goes without signal.
        """
        check_device(quantisation, device)
        file = Path(name) if is_single_file(name) else None
        parts = (
            Parts.load(
                name, revision=revision, variant=variant, quantisation=quantisation, dtype=dtype
            )
            if file is None
            else load_file(file, quantisation=quantisation, dtype=dtype, prediction=prediction)
        )
        if quantisation == "fp8":
            store_in_float8(parts.unet)
        base = cls(
            name=name,
            unet=parts.unet,
            vae=parts.vae if vae is None else _load_vae(vae, parts.vae.config["scaling_factor"]),
            text_encoder=_text_encoder(parts, prompt_syntax, clip_skip),
            scheduler=settle(parts.scheduler, prediction, zero_terminal_snr=zero_terminal_snr),
            zeros_for_empty=parts.zeros_for_empty,
        )
        return base.to(device)

    def to(self, device: torch.device | str) -> Self:
        """Move everything that is still held."""
        parts: tuple[Any, ...] = (self.unet, self._vae, self._text_encoder)
        for part in parts:
            if part is not None and not getattr(part, "is_quantized", False):
                part.to(device)  # bitsandbytes' are where they were made
        return self

    def shard(self, device: torch.device, *, with_deepspeed: bool = False) -> Self:
        """Deal the UNet out to all processes, which must all do so, and move the rest.

        Before anything is moved, so that no device ever holds the whole UNet.
        """
        if with_deepspeed:
            self._engine = sharding.shard_with_deepspeed(self.unet)
        else:
            sharding.shard(self.unet, device)
        return self.to(device)

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.device

    @property
    def sharded(self) -> bool:
        """Whether every process must take part in every forward of the UNet."""
        return sharding.is_sharded(self.unet)

    @property
    def dims(self) -> tuple[int, ...]:
        """Every context width of the UNet, ascending."""
        return context_dims(self.unet)

    @property
    def own_size(self) -> tuple[int, int]:
        """Width and height of the pictures that the UNet was made for, by its configuration."""
        side = int(self.unet.config["sample_size"]) * self.downscaling
        return side, side

    @property
    def alphas_cumprod(self) -> Tensor:
        """The share of signal left at each timestep (T,), float32."""
        return self.scheduler.alphas_cumprod

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether nothing of a picture is left at the last timestep."""
        return has_zero_terminal_snr(self.scheduler)

    @property
    def vae(self) -> Any:
        """The autoencoder. Raises `ModelError` after `free_vae`."""
        if self._vae is None:
            raise ModelError(
                "the autoencoder was freed; load the base model again to encode or decode pictures"
            )
        return self._vae

    @property
    def text_encoder(self) -> TextEncoder | TextPair:
        """The text encoder, or both. Raises `ModelError` after `free_text_encoder`."""
        if self._text_encoder is None:
            raise ModelError(
                "the text encoder was freed; load the base model again to encode prompts"
            )
        return self._text_encoder

    def free_vae(self) -> None:
        """Let go of the autoencoder, once all latents are there and no picture will be drawn."""
        self._vae = None

    def park_vae(self) -> None:
        """Move the autoencoder off the device; `decode` fetches it for as long as it takes."""
        self._vae_parked = True
        self.vae.to("cpu")

    def free_text_encoder(self) -> None:
        """Let go of the text encoder, once all contexts are there."""
        self._text_encoder = None

    @cached_property
    def vae_fingerprint(self) -> str:
        """A hash of all that the autoencoder computes with: its structure and its weights."""
        return _fingerprint(self.vae.config, self.vae)

    @cached_property
    def text_identity(self) -> dict[str, Any]:
        """All that the context of a prompt depends on, but the prompt, as JSON values."""
        encoder = self.text_encoder
        names = ("text_encoder", "text_encoder_2")
        return {
            **{name: _text_hash(it) for name, it in zip(names, encoder.encoders, strict=False)},
            "dtype": str(encoder.encoders[0].model.dtype),
            "prompt_syntax": encoder.syntax,
            "clip_skip": encoder.clip_skip,
        }

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Moments:
        """Moments of pictures (B, 3, H, W) in -1..1, in float32 on the CPU."""
        distribution = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        mean, std = distribution.mean.float().cpu(), distribution.std.float().cpu()
        return Moments(mean * self.scaling_factor, std * self.scaling_factor)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, C, h, w), in RGB: one at a time, since each may take 1 GiB."""
        self.vae.to(self.device)
        scaled = latents.to(self.device, self.vae.dtype) / self.scaling_factor
        samples = torch.cat([self.vae.decode(each).sample for each in scaled.split(1)])
        values = samples.float().clamp(-1, 1).add(1).mul(127.5).round().byte()
        if self._vae_parked:
            self.vae.to("cpu")
        return [Image.fromarray(picture.numpy()) for picture in values.permute(0, 2, 3, 1).cpu()]

    def encode_prompts(self, prompts: list[str]) -> list[Condition]:
        """What each prompt says, for one picture; `Condition.join` joins different lengths."""
        return self.text_encoder.encode(prompts)

    def tell(self, texts: Condition, views: Iterable[View]) -> Condition:
        """These texts, of pictures that are seen so; only a Stable Diffusion XL is told."""
        return texts.of(time_ids(views, self.numbers_told)) if self.numbers_told else texts

    def negative(self, text: Condition, prompt: str) -> Condition:
        """What guidance leads away from: the text of this prompt, or zeros for no prompt at all
        where the model was trained so, as Stable Diffusion XL was (diffusers and the web UI do so;
        an empty caption is encoded, as their training scripts and kohya's do).
        """
        return text.zeroed() if self._zeros_for_empty and not prompt else text


def _text_encoder(parts: Parts, syntax: Syntax, clip_skip: int) -> TextEncoder | TextPair:
    """What encodes prompts: of a Stable Diffusion XL both, of its refiner the second."""
    xl = parts.text_encoder_2 is not None
    both = (parts.tokenizer, parts.text_encoder), (parts.tokenizer_2, parts.text_encoder_2)
    encoders = [
        TextEncoder(tokenizer, model, syntax=syntax, clip_skip=clip_skip, penultimate=xl)
        for tokenizer, model in both
        if tokenizer is not None and model is not None
    ]
    return TextPair(*encoders) if len(encoders) == 2 else encoders[0]


def _text_hash(encoder: TextEncoder) -> str:
    """A hash of what a text encoder computes with."""
    config = {**encoder.model.config.to_dict(), "vocabulary": encoder.tokenizer.get_vocab()}
    if encoder.penultimate:
        config |= {"penultimate": True, "padding": encoder.tokenizer.pad_token_id}
    return _fingerprint(config, encoder.model)


def _load_vae(name: str, scaling: float) -> AutoencoderKL:
    """An autoencoder alone; `scaling` of latents where its file does not say it. `ModelError`."""
    if is_single_file(name):
        return load_vae_file(Path(name), scaling)
    return load_pretrained_vae(name)


def _fingerprint(config: Mapping[str, Any], module: torch.nn.Module) -> str:
    """A hash of a module's structure and weights, not of where they lie or who wrote them."""
    structure = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in ("transformers_version", "architectures", "dtype")
    }
    digest = hashlib.sha256(json.dumps(structure, default=str, sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
