"""From a single file to the parts of a base model, tensor by tensor."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from hn.diffusion.memory.quantisation import Quantisation
from hn.diffusion.objective import Prediction
from hn.diffusion.parts import Parts
from hn.diffusion.single_file.architecture import OPEN_CLIP, Architecture, vae_config
from hn.diffusion.single_file.vocabulary import build_tokenizer
from hn.diffusion.surgery.single_file import TEXT, UNET, VAE, Names
from hn.errors import ModelError, OptionError
from hn.network import container

_PADDING_2 = "!"  # what Stable Diffusion 2 was trained with behind its prompts
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_QKV = re.compile(r"self_attn\.([qkv])_proj")

Tensors = Mapping[str, Any]
"""By name: tensors, or slices of a file that say their shape and are read by `[:]`."""


def read_architecture(path: Path, prediction: Prediction | None) -> Architecture:
    """What the file is of, by its header. Raises `ModelError` for what `load` would not read.

    Nothing in it says what a Stable Diffusion 2 predicts: `prediction` must.
    """
    with _opened(path) as tensors:
        return _architecture(tensors, path, prediction)


def load(
    path: Path, *, quantisation: Quantisation, dtype: torch.dtype, prediction: Prediction | None
) -> Parts:
    """UNet and text encoder in `dtype`, the autoencoder in float32.

    Raises `ModelError`, or `OptionError` for a quantisation that is done while diffusers loads.
    """
    if quantisation in ("int8", "nf4"):
        raise OptionError(
            f"quantize_base {quantisation} is done while a diffusers folder is loaded, and {path} "
            "is a single file: give quantize_base fp8, or a folder"
        )
    with _opened(path) as tensors:
        found = _architecture(tensors, path, prediction)
        layers, levels = found.unet["layers_per_block"], len(found.vae["block_out_channels"])
        names = Names(path.parent, layers, levels)
        with torch.device("meta"):
            unet: Any = UNet2DConditionModel.from_config(found.unet)
        with_attention = {
            name.partition(".attentions.")[0]
            for name in unet.state_dict()
            if ".attentions." in name
        }
        read = partial(_renamed, tensors, lambda name: UNET + names.unet(name, with_attention))
        _fill(unet, read, dtype, path)
        vae = _vae(tensors, found.vae, names, VAE, path)
        text = CLIPTextModel(CLIPTextConfig(**found.text))
        first = found.family == "Stable Diffusion 1"
        _fill(text, partial(_text_1 if first else _text_2, tensors), dtype, path)
    return Parts(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=build_tokenizer() if first else build_tokenizer(_PADDING_2),
        scheduler=DDIMScheduler(**_NOISE, **_DDIM, prediction_type=prediction or "epsilon"),
    )


def load_vae(path: Path) -> AutoencoderKL:
    """The autoencoder of a file that holds it alone, or with all the rest. Raises `ModelError`."""
    with _opened(path) as tensors:
        prefix = VAE if any(name.startswith(VAE) for name in tensors) else ""
        try:
            config = vae_config({name: _shape(it) for name, it in tensors.items()}, prefix)
        except (KeyError, IndexError) as error:
            raise ModelError(f"{path} holds no autoencoder: {error.args[0]} is missing") from error
        return _vae(
            tensors, config, Names(path.parent, 0, len(config["block_out_channels"])), prefix, path
        )


@contextmanager
def _opened(path: Path) -> Iterator[Tensors]:
    """Raises `ModelError` for what cannot be read."""
    if path.suffix == ".ckpt":
        content = container.read(path)
        state = content.get("state_dict", content) if isinstance(content, dict) else {}
        yield {str(name): it for name, it in state.items() if isinstance(it, Tensor)}
        return
    try:
        with safe_open(path, framework="pt") as file:
            yield {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {path} as .safetensors: {error}") from error


def _architecture(tensors: Tensors, path: Path, prediction: Prediction | None) -> Architecture:
    found = Architecture.of({name: _shape(it) for name, it in tensors.items()}, str(path))
    if found.family == "Stable Diffusion 2" and prediction is None:
        raise ModelError(
            f"{path} is a Stable Diffusion 2, and no file says what these predict: give "
            "prediction_type, v_prediction for those of 768 pixels, epsilon for 512"
        )
    return found


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape if isinstance(tensor, Tensor) else tensor.get_shape())


def _vae(tensors: Tensors, config: dict[str, Any], names: Names, prefix: str, path: Path) -> Any:
    with torch.device("meta"):
        vae: Any = AutoencoderKL.from_config(config)
    read = partial(_renamed, tensors, lambda name: prefix + names.vae(name))
    return _fill(vae, read, torch.float32, path)


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


def _renamed(tensors: Tensors, rename: Callable[[str], str], name: str) -> Tensor:
    return tensors[rename(name)][:]


def _text_1(tensors: Tensors, name: str) -> Tensor:
    return tensors[f"{TEXT}text_model.{name.removeprefix('text_model.')}"][:]


def _text_2(tensors: Tensors, name: str) -> Tensor:
    """As OpenCLIP calls it, with queries, keys and values in one."""
    inner = name.removeprefix("text_model.")
    fixed = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    if inner in fixed:
        return tensors[OPEN_CLIP + fixed[inner]][:]
    match = _LAYER.fullmatch(inner)
    assert match is not None, name
    layer, part, kind = match.groups()
    outer = f"{OPEN_CLIP}transformer.resblocks.{layer}."
    if (side := _QKV.fullmatch(part)) is not None:
        joined = tensors[f"{outer}attn.in_proj_{kind}"][:]
        return joined.chunk(3)["qkv".index(side[1])].contiguous()
    return tensors[f"{outer}{_OPEN_CLIP[part]}.{kind}"][:]
