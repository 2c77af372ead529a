"""Small random models and picture folders, made with the real libraries in well under a second
each.
"""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hn import demo
from hn.demo.pictures import caption, render, sample_scene

CONTEXT_DIM = 24
SELF_DIMS = (16, 32)
DIMS = (16, 24, 32)
XL_TEXT_DIMS = (24, 16)  # of its two text encoders, whose contexts stand side by side
XL_POOLED_DIM = 20
XL_TIME_DIM = 8  # of each of its sizes
XL_DIMS = (32, 40, 48)  # the text's is 24 + 16


def make_unet(**changes) -> UNet2DConditionModel:
    """Self-attention of widths 16 and 32, text context of width 24: all different."""
    config = {
        "sample_size": 8,
        "block_out_channels": SELF_DIMS,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": CONTEXT_DIM,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**config, **changes})


def make_vae(**changes) -> AutoencoderKL:
    """Latents of half the size."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        sample_size=16,
        **changes,
    )


def make_text_config(tokenizer: CLIPTokenizer, **changes) -> CLIPTextConfig:
    """One layer, 32 tokens."""
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": CONTEXT_DIM,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**{**config, **changes})


def make_model(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    seed: int = 0,
    unet: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
) -> Path:
    """A random Stable Diffusion in diffusers' layout: 16-pixel pictures, 8x8 latents.

    `unet` and `text` are changes of their configs.
    """
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(demo.MODEL / "tokenizer")
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=CLIPTextModel(make_text_config(tokenizer, **(text or {}))),
        tokenizer=tokenizer,
        unet=make_unet(**(unet or {})),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def make_xl_unet(*, sizes: int = 6, **changes) -> UNet2DConditionModel:
    """As of Stable Diffusion XL: transformers of 0, 1 and 2 blocks, told of `sizes` numbers."""
    config = {
        "sample_size": 8,
        "block_out_channels": (16, 32, 48),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),  # the first block has no transformer
        "use_linear_projection": True,
        "cross_attention_dim": sum(XL_TEXT_DIMS),
        "attention_head_dim": (2, 4, 6),
        "norm_num_groups": 8,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": XL_TIME_DIM,
        "projection_class_embeddings_input_dim": XL_POOLED_DIM + sizes * XL_TIME_DIM,
    }
    return UNet2DConditionModel(**{**config, **changes})


def make_xl_model(
    folder: Path, *, prediction_type: str = "epsilon", refiner: bool = False, seed: int = 0
) -> Path:
    """A random Stable Diffusion XL in diffusers' layout, or its refiner, with the scheduler of the
    published one; 16-pixel pictures, 8x8 latents, text encoders of 4 and 3 layers.
    """
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(demo.MODEL / "tokenizer")
    tokenizer_2 = CLIPTokenizer.from_pretrained(demo.MODEL / "tokenizer", pad_token="!")
    first, second = XL_TEXT_DIMS
    text_2 = make_text_config(
        tokenizer_2, hidden_size=second, projection_dim=XL_POOLED_DIM, num_hidden_layers=3
    )
    text = make_text_config(tokenizer, hidden_size=first, num_hidden_layers=4)
    scheduler = EulerDiscreteScheduler.from_config(
        {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": prediction_type,
            "timestep_spacing": "leading",
            "steps_offset": 1,
            "clip_sample": False,
            "set_alpha_to_one": False,
        }
    )
    parts = {
        "vae": make_vae(scaling_factor=0.13025, force_upcast=True),
        "text_encoder_2": CLIPTextModelWithProjection(text_2),
        "tokenizer_2": tokenizer_2,
        "scheduler": scheduler,
        "add_watermarker": False,
    }
    if refiner:
        unet = make_xl_unet(sizes=5, cross_attention_dim=second)
        pipeline = StableDiffusionXLImg2ImgPipeline(
            **parts,
            unet=unet,
            text_encoder=None,
            tokenizer=None,
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
        )
    else:
        pipeline = StableDiffusionXLPipeline(
            **parts, unet=make_xl_unet(), text_encoder=CLIPTextModel(text), tokenizer=tokenizer
        )
    pipeline.save_pretrained(folder)
    return folder


def make_model_2(folder: Path) -> Path:
    """One shaped as Stable Diffusion 2: OpenCLIP's activation, of whose layers the last is left out
    (so the last but one is read), linear projections, heads by level, velocity, upcast attention.
    """
    unet = {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True}
    text = {"hidden_act": "gelu", "num_hidden_layers": 2, "projection_dim": 8}
    return make_model(folder, prediction_type="v_prediction", seed=2, unet=unet, text=text)


def make_inpainting_model(folder: Path) -> Path:
    """One whose UNet reads a mask and what is left of a picture beside the noisy latents."""
    return make_model(folder, seed=3, unet={"in_channels": 9})


def left_part(size: tuple[int, int]) -> Image.Image:
    """An alpha channel: opaque at the left, hidden at the right, an edge in the middle."""
    return Image.linear_gradient("L").rotate(-90).resize(size).point(lambda v: 3 * v - 255)


def make_pictures(
    folder: Path,
    count: int = 6,
    *,
    size: tuple[int, int] = (20, 16),
    alpha: Callable[[tuple[int, int]], Image.Image] | None = None,
) -> Path:
    """Captioned pictures, wider than high so that crops differ; `alpha` makes their channel."""
    rng = Random(0)
    folder.mkdir(parents=True)
    for index in range(count):
        scene = sample_scene(rng)
        picture = render(scene, side=20).resize(size)
        if alpha is not None:
            picture.putalpha(alpha(size))
        picture.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption(scene), encoding="utf-8")
    return folder


def make_worded_pictures(folder: Path) -> Path:
    """Two pictures with captions in text files, two in metadata, two in their names."""
    make_pictures(folder)
    (folder / "0.txt").write_text("a {red|blue} star ||| on green, large\n\nstar, red, {small|big}")
    (folder / "1.txt").write_text("a heart, on blue, outlined")
    for number in range(2, 6):
        (folder / f"{number}.txt").unlink()
    rows = [
        {"file_name": "2.png", "text": ["a cross, on {red|white}", "cross ||| large, at night"]},
        {"file_name": "3.png", "text": "a circle, small, {{on|at} the|to the} left"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    (folder / "4.png").rename(folder / "4 a square, red.png")
    (folder / "5.png").rename(folder / "5 a triangle.png")
    return folder
