"""The demo's autoencoder, trained on pictures of every kind."""

import copy
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from hn.demo.pictures import render, sample_scene
from hn.demo.rates import cosine, follow


def train_vae(file: Path, seed: int, steps: int, batch: int = 16) -> AutoencoderKL:
    """A three-level autoencoder: 64x64 pictures, latents (4, 16, 16)."""
    torch.manual_seed(seed + 2)
    config = {
        "block_out_channels": (16, 32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 2,  # many small groups would take the colour out of flat pictures
        "sample_size": 64,
    }
    vae: Any = AutoencoderKL(**config)
    vae.set_attn_processor(AttnProcessor())
    # Start nearly without noise: it would drown the signal.
    nn.init.constant_(vae.quant_conv.bias[4:].detach(), -6.0)
    if file.exists():
        saved = torch.load(file, weights_only=True)
        vae.load_state_dict(saved["weights"])
        vae.register_to_config(scaling_factor=saved["scaling_factor"])
        return vae.eval()
    average: Any = copy.deepcopy(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), weight_decay=0.0)
    rng, started = Random(seed + 2), time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1.2e-3 * min(1.0, (step + 1) / 100) * cosine(step, steps)
        pixels = to_pixels([_any_picture(rng) for _ in range(batch)])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            restored = vae.decode(posterior.sample()).sample
        error = (restored.float() - pixels).abs()
        loss = error.mean() + error.square().mean() + 1e-6 * posterior.kl().float().mean() / 256
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        follow(average, vae, step)
        if step % 200 == 0 or step == steps - 1:
            print(
                f"vae: step {step}, loss {loss.item():.4f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    average.eval()
    with torch.no_grad():
        sample = average.encode(to_pixels([_any_picture(rng) for _ in range(256)])).latent_dist.mean
    average.register_to_config(scaling_factor=round(1 / sample.std().item(), 5))
    saved = {"weights": average.state_dict(), "scaling_factor": average.config["scaling_factor"]}
    torch.save(saved, file)
    return average


def _any_picture(rng: Random) -> np.ndarray:
    scene = sample_scene(rng, variants=0.3)
    return np.asarray(render(scene, "neon" if rng.random() < 0.35 else "plain"))


def to_pixels(pictures: list[np.ndarray]) -> Tensor:
    """Pictures (64, 64, 3) of 0..255 to one batch (B, 3, 64, 64) of -1..1."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return batch.float().div(127.5).sub(1.0).contiguous()
