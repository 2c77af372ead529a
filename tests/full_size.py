"""Published base models by their configurations alone, without weights: facts of their folders."""

import json
from pathlib import Path
from typing import Any

# https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0
XL_PARAMETERS = 2_567_463_684  # of its UNet
XL_DIMS = (640, 1280, 2048)
XL_TRAINED = 49_962_240  # of a hypernetwork of these widths, 1-2-1
XL_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
XL_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
XL_TEXT_ENCODERS: list[dict[str, Any]] = [
    {
        "architectures": ["CLIPTextModel"],
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_position_embeddings": 77,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
    },
    {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "max_position_embeddings": 77,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
        "vocab_size": 49408,
    },
]
XL_SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def write_xl(folder: Path) -> Path:
    """Stable Diffusion XL in diffusers' layout, as far as it can be without weights and words."""
    files = {
        "unet/config.json": XL_UNET,
        "vae/config.json": XL_VAE,
        "text_encoder/config.json": XL_TEXT_ENCODERS[0],
        "text_encoder_2/config.json": XL_TEXT_ENCODERS[1],
        "scheduler/scheduler_config.json": XL_SCHEDULER,
        "tokenizer/tokenizer_config.json": {"model_max_length": 77},
        "tokenizer_2/tokenizer_config.json": {"model_max_length": 77},
    }
    parts = {Path(name).parent.name: True for name in files}
    index = {part: ["diffusers", "of its kind"] for part in parts}
    for name, values in {**files, "model_index.json": index}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return folder
