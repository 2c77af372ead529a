"""Small base models of every family in diffusers' layout, for tests of what single files hold."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hn.diffusion.single_file.vocabulary import build_tokenizer
from hn.diffusion.single_file.writing import entries_of, weights_of
from hn.diffusion.surgery.tensor_files import write

WIDTH = 64  # of the first text encoder: one head of CLIP
WIDTH_2, POOLED = 128, 96  # of the second, which projects to another width
TIME_DIM = 8  # of each number that tells Stable Diffusion XL sizes and places
_TEXT = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 8,
}
_XL = {
    **_UNET,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 1, 1),
    "use_linear_projection": True,
    "cross_attention_dim": WIDTH + WIDTH_2,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_DIM,
    "projection_class_embeddings_input_dim": POOLED + 6 * TIME_DIM,
}
_REFINER = {
    **_XL,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 2,
    "cross_attention_dim": WIDTH_2,
    "projection_class_embeddings_input_dim": POOLED + 5 * TIME_DIM,
}
_TWO = {"attention_head_dim": (1, 1), "use_linear_projection": True, "block_out_channels": (64, 64)}


def text_model(activation: str, layers: int) -> CLIPTextModel:
    """The only text encoder of Stable Diffusion 1 or 2, the first of XL."""
    config = {"hidden_size": WIDTH, "intermediate_size": 96, "num_attention_heads": 1}
    return CLIPTextModel(
        CLIPTextConfig(**_TEXT, **config, num_hidden_layers=layers, hidden_act=activation)
    )


def text_model_2() -> CLIPTextModelWithProjection:
    """The second of XL."""
    config = {"hidden_size": WIDTH_2, "intermediate_size": 160, "num_attention_heads": 2}
    config |= {"num_hidden_layers": 2, "hidden_act": "gelu", "projection_dim": POOLED}
    return CLIPTextModelWithProjection(CLIPTextConfig(**_TEXT, **config))


def parts(unet: dict, scaling: float, **scheduler) -> dict:
    """What all pipelines have, with 4 levels of the autoencoder."""
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=scaling,
    )
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    noise |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return {
        "vae": vae,
        "unet": UNet2DConditionModel(**unet),
        "scheduler": DDIMScheduler(**{**noise, **scheduler}),
    }


def make_one(folder: Path, **unet) -> Path:
    """A Stable Diffusion 1."""
    torch.manual_seed(0)
    return _plain(folder, text_model("quick_gelu", 2), "<|endoftext|>", {**_UNET, **unet})


def make_two(folder: Path, **scheduler) -> Path:
    """A Stable Diffusion 2."""
    torch.manual_seed(0)
    return _plain(folder, text_model("gelu", 2), "!", {**_UNET, **_TWO}, **scheduler)


def _plain(folder: Path, text: CLIPTextModel, padding: str, unet: dict, **scheduler) -> Path:
    StableDiffusionPipeline(
        **parts(unet, 0.18215, **scheduler),
        text_encoder=text,
        tokenizer=build_tokenizer(padding),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def make_xl(folder: Path, *, scheduler: dict | None = None, **unet) -> Path:
    """A Stable Diffusion XL."""
    torch.manual_seed(0)
    StableDiffusionXLPipeline(
        **parts({**_XL, **unet}, 0.13025, **(scheduler or {})),
        text_encoder=text_model("quick_gelu", 2),
        tokenizer=build_tokenizer(),
        text_encoder_2=text_model_2(),
        tokenizer_2=build_tokenizer("!"),
    ).save_pretrained(folder)
    return folder


def make_refiner(folder: Path) -> Path:
    """Its refiner, which reads the second text encoder only."""
    torch.manual_seed(0)
    StableDiffusionXLImg2ImgPipeline(
        **parts(_REFINER, 0.13025),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=text_model_2(),
        tokenizer_2=build_tokenizer("!"),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    ).save_pretrained(folder)
    return folder


MAKERS = {"1": make_one, "2": make_two, "xl": make_xl, "refiner": make_refiner}


def as_file(folder: Path) -> Path:
    """A folder's base model as a single file beside it."""
    path = folder.with_suffix(".safetensors")
    write(path, entries_of(folder, weights_of(folder, "unet")[0], {}), {})
    return path
