"""Trains the demo's Stable Diffusion from nothing (`tools/make_demo_model.py`).

Three stages, each kept in a work folder, so that an interrupted build goes on:

1. `text`: the tokenizer's merges from the captions, the text encoder from telling what they name;
2. `autoencoder`: from pictures of every kind, the demo's style among them: as with the real one, it
   knows more than the UNet was taught;
3. the UNet, from plain pictures, their outlined and night variants, and 10 % empty captions. It
   predicts velocity: near pure noise, epsilon is almost what the UNet is given, and it is there
   that colours and shapes are decided.
"""

import copy
import json
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from hn.demo.autoencoder import to_pixels, train_vae
from hn.demo.pictures import caption, render, sample_known_scene
from hn.demo.rates import cosine, follow
from hn.demo.text import (
    CONTEXT_DIM,
    EMPTY_CAPTIONS,
    VARIANTS,
    make_tokenizer,
    tokenize,
    train_text_encoder,
)

BATCH = 64


def build(
    output: Path, work: Path, *, seed: int, vae_steps: int, unet_steps: int, pictures: int
) -> None:
    """Run the stages and save the pipeline to `output` as float16; prints a line now and then."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(work / "tokenizer", seed)
    text_encoder = train_text_encoder(tokenizer, work / "text_encoder.pt", seed)
    vae = train_vae(work / "vae.pt", seed, vae_steps)
    latents, contexts, owner = encode_pictures(vae, tokenizer, text_encoder, seed, pictures)
    unet = train_unet(latents, contexts, owner, work / "unet.pt", seed, unet_steps)
    pipeline_class: Any = StableDiffusionPipeline  # its annotations know neither None nor DDIM
    pipeline = pipeline_class(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(output, safe_serialization=True)
    # Stored small, computed in float32: diffusers' default, but not that of transformers.
    description = output / "text_encoder" / "config.json"
    content = json.loads(description.read_text(encoding="utf-8")) | {"dtype": "float32"}
    description.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def make_scheduler() -> DDIMScheduler:
    """The noise schedule of SD 1, with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def encode_pictures(
    vae: Any, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, seed: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (N, 4, 16, 16), all contexts (M, TOKENS, D), the two of each picture (N, 2)."""
    rng = Random(seed + 3)
    latents, known, owner = [], {"": 0}, []
    for start in range(0, count, 256):
        scenes = [
            sample_known_scene(rng, variants=VARIANTS) for _ in range(min(256, count - start))
        ]
        pixels = to_pixels([np.asarray(render(scene)) for scene in scenes])
        latents.append(vae.encode(pixels).latent_dist.mean * vae.config["scaling_factor"])
        for scene in scenes:
            words = (caption(scene, rng), caption(scene, rng))
            owner.append([known.setdefault(text, len(known)) for text in words])
    captions = list(known)
    contexts = [
        text_encoder(
            tokenize(tokenizer, captions[start : start + 256])
        ).last_hidden_state.bfloat16()
        for start in range(0, len(captions), 256)
    ]
    print(f"encoded {count} pictures and {len(captions)} captions", flush=True)
    return torch.cat(latents), torch.cat(contexts), torch.tensor(owner)


def make_unet() -> Any:
    """Self-attention widths 32, 64, 96; cross-attention on every level and in the middle."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=CONTEXT_DIM,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def train_unet(
    latents: Tensor, contexts: Tensor, owner: Tensor, file: Path, seed: int, steps: int
) -> UNet2DConditionModel:
    """Denoising with v-prediction; returns the moving average of the weights."""
    torch.manual_seed(seed + 4)
    unet: Any = make_unet().to(memory_format=torch.channels_last)
    # At this size, plain products beat the fused kernel's backward pass threefold.
    unet.set_attn_processor(AttnProcessor())
    average = copy.deepcopy(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=0.01)
    parts = {"unet": unet, "average": average, "optimizer": optimizer}
    first = _load_stage(file, parts)
    generator = torch.Generator().manual_seed(seed + 5 + first)
    scheduler, started, losses = make_scheduler(), time.monotonic(), []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 200) * cosine(step, steps)
        noisy, timesteps, context, target = _problem(scheduler, latents, contexts, owner, generator)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(noisy, timesteps, context).sample
        # Unweighted: min-SNR would take the weight from where obedience is decided.
        loss = (predicted.float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        follow(average, unet, step)
        losses.append(loss.item())
        if (step + 1) % 250 == 0:
            mean, seconds = sum(losses[-250:]) / len(losses[-250:]), time.monotonic() - started
            print(f"unet: step {step + 1}, loss {mean:.5f}, {seconds:.0f} s", flush=True)
        if (step + 1) % 1000 == 0 or step == steps - 1:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**states, "step": step + 1}, file)
    return average.eval()


def _problem(
    scheduler: Any, latents: Tensor, contexts: Tensor, owner: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents (B, 4, 16, 16), timesteps (B,), context (B, TOKENS, D), target velocity."""
    rows = torch.randint(len(latents), (BATCH,), generator=generator)
    texts = owner[rows, torch.randint(2, (BATCH,), generator=generator)]
    texts[torch.rand(BATCH, generator=generator) < EMPTY_CAPTIONS] = 0
    timesteps = torch.randint(1000, (BATCH,), generator=generator)
    noise = torch.randn(BATCH, *latents.shape[1:], generator=generator)
    noisy = scheduler.add_noise(latents[rows], noise, timesteps)
    target = scheduler.get_velocity(latents[rows], noise, timesteps)
    return noisy.contiguous(memory_format=torch.channels_last), timesteps, contexts[texts], target


def _load_stage(file: Path, parts: dict[str, Any]) -> int:
    """Put back what an interrupted build saved; returns the step to go on from."""
    if not file.exists():
        return 0
    saved = torch.load(file, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["step"]
