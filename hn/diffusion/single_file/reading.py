"""From a single file to the parts of a base model, tensor by tensor."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hn.diffusion.loading.parts import Parts
from hn.diffusion.memory.quantisation import Quantisation
from hn.diffusion.objective import Prediction
from hn.diffusion.single_file.architecture import Architecture, vae_config
from hn.diffusion.single_file.names import UNET, VAE, UNetNames, vae_name
from hn.diffusion.single_file.source import Source, opened
from hn.diffusion.single_file.texts import TextLayout
from hn.diffusion.single_file.vocabulary import build_tokenizer
from hn.errors import ModelError, OptionError


def read_architecture(path: Path, prediction: Prediction | None) -> Architecture:
    """What the file is of, by its header. Raises `ModelError` for what `load` would not read.

    `prediction`: what it predicts, if that is known better than the file says.
    """
    with opened(path) as source:
        return Architecture.of(source, prediction)


def load(
    path: Path, *, quantisation: Quantisation, dtype: torch.dtype, prediction: Prediction | None
) -> Parts:
    """UNet and text encoders in `dtype`, the autoencoder in float32.

    Raises `ModelError`, or `OptionError` for a quantisation that is done while diffusers loads.
    """
    if quantisation in ("int8", "nf4"):
        raise OptionError(
            f"quantize_base {quantisation} is done while a diffusers folder is loaded, and {path} "
            "is a single file: give quantize_base fp8, or a folder"
        )
    with opened(path) as source:
        found = Architecture.of(source, prediction)
        texts: dict[str, Any] = {}
        for name, layout in found.family.texts.items():
            texts[name] = _text_encoder(source, layout, found.texts[name], dtype)
            tokenizer = build_tokenizer(layout.padding)
            texts[name.replace("text_encoder", "tokenizer")] = tokenizer
        return Parts(
            unet=_unet(source, found.unet, dtype),
            vae=_vae(source, found.vae, VAE),
            scheduler=DDIMScheduler(**found.scheduler),
            **texts,
        )


def load_vae(path: Path, scaling: float) -> AutoencoderKL:
    """The autoencoder of a file that holds it alone, or with all the rest; nothing in it says by
    how much its latents are scaled. Raises `ModelError`.
    """
    with opened(path) as source:
        prefix = VAE if any(name.startswith(VAE) for name in source.shapes) else ""
        try:
            config = vae_config(source.shapes, scaling, prefix)
        except (KeyError, IndexError) as error:
            raise ModelError(f"{path} holds no autoencoder: {error.args[0]} is missing") from error
        return _vae(source, config, prefix)


def _unet(source: Source, config: dict[str, Any], dtype: torch.dtype) -> Any:
    """Raises `ModelError` also for tensors of the UNet that have no place in it."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(config)
    names = UNetNames.of(config["layers_per_block"], unet.state_dict())
    _fill(unet, lambda name: source.read(UNET + names(name)), dtype, source.path)
    if unread := source.unread(UNET):
        raise ModelError(
            f"{source.path} is of another architecture: {len(unread)} tensors of its UNet have no "
            f"place in a Stable Diffusion, the first is {unread[0]}"
        )
    return unet


def _vae(source: Source, config: dict[str, Any], prefix: str) -> Any:
    with torch.device("meta"):
        vae: Any = AutoencoderKL.from_config(config)
    levels = len(config["block_out_channels"])
    return _fill(
        vae, lambda name: source.read(prefix + vae_name(name, levels)), torch.float32, source.path
    )


def _text_encoder(
    source: Source, layout: TextLayout, config: dict[str, Any], dtype: torch.dtype
) -> Any:
    kind = CLIPTextModelWithProjection if layout.projected else CLIPTextModel
    with torch.device("meta"):  # those of XL would take seconds to fill with random numbers
        model: Any = kind(CLIPTextConfig(**config))
    _fill(model, partial(layout.read, source), dtype, source.path)
    for module in model.modules():
        if "position_ids" in dict(module.named_buffers(recurse=False)):  # which no file holds
            module.position_ids = torch.arange(config["max_position_embeddings"])[None]
    return model


def _fill(module: Any, read: Callable[[str], Tensor], dtype: torch.dtype, path: Path) -> Any:
    """Give a module the file's tensors, whatever it held. Raises `ModelError`."""
    state: dict[str, Tensor] = {}
    for name, wanted in module.state_dict().items():
        try:
            tensor = read(name).to(dtype)
        except KeyError as error:
            raise ModelError(f"{path} is incomplete: it has no {error.args[0]}") from error
        if tensor.shape[: wanted.dim()] != wanted.shape or tensor.numel() != wanted.numel():
            raise ModelError(
                f"{path}: {name} has the shape {tuple(tensor.shape)}, where its other tensors lead "
                f"to {tuple(wanted.shape)}"
            )
        state[name] = tensor.reshape(wanted.shape)  # 1 x 1 convolutions are linear here
    module.load_state_dict(state, assign=True)
    return module
