"""Trains the demo's Stable Diffusion from nothing, in the layout of any diffusers SD 1 folder
(`tools/make_demo_model.py`).

Three stages, each cached in a work folder so that an interrupted build goes on:

1. the tokenizer's merges are learnt from the captions, and the text encoder from telling what a
caption names;
2. the autoencoder from pictures of every kind, the demo's style among them: as with the real one,
it knows more than
   the UNet was taught;
3. the UNet from plain pictures, their outlined and night variants, and 10 % empty captions, with
v-prediction: near pure
   noise, epsilon is almost what the UNet is given, and obedience, decided there, takes ten times as
   long to learn.
"""

import copy
import math
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hn.demo.pictures import PALETTE, PLACES, SHAPES, SIZES, Scene, caption, render, sample_scene

TOKENS = 32  # enough for the longest caption the grammar makes, twice
CONTEXT_DIM = (
    80  # unlike every channel width of the UNet, so that each hypernetwork pair has one job
)
EMPTY_CAPTIONS = 0.1  # for classifier-free guidance
VARIANTS = 0.15  # chance of an outline, and of night


def build(
    output: Path, work: Path, *, seed: int, vae_steps: int, unet_steps: int, pictures: int
) -> None:
    """Run the stages and save the pipeline to `output` as float16 safetensors. Prints a log line
    now and then.
    """
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


# --- text -----------------------------------------------------------------------------------------
# -------------------


def make_tokenizer(folder: Path, seed: int) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE) that makes one token of each word of the captions."""
    if not folder.exists():
        rng = Random(seed)
        corpus = [caption(sample_scene(rng, variants=0.5), rng) for _ in range(4000)]
        learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        learner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        learner.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=700, initial_alphabet=sorted(letters), end_of_word_suffix="</w>"
        )
        learner.train_from_iterator(corpus, trainer)
        learnt = models_json(learner)
        merges: Any = [tuple(pair) for pair in learnt["merges"]]
        # CLIP's order: the bytes, the bytes that end a word, the merges, the two marks.
        words = sorted(letters) + [letter + "</w>" for letter in sorted(letters)]
        words += [left + right for left, right in merges]
        vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
        for mark in ("<|startoftext|>", "<|endoftext|>"):
            vocabulary[mark] = len(vocabulary)
        CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS).save_pretrained(
            folder
        )
    return CLIPTokenizer.from_pretrained(folder)


def models_json(tokenizer: Tokenizer) -> dict:
    """The BPE model of a tokenizer as its JSON description."""
    import json

    return json.loads(tokenizer.to_str())["model"]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token numbers (B, TOKENS), padded with the end mark as SD 1 does."""
    return tokenizer(
        captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def train_text_encoder(
    tokenizer: CLIPTokenizer, file: Path, seed: int, steps: int = 1500
) -> CLIPTextModel:
    """A two-layer CLIP text model, taught to say from its last states what the caption names."""
    torch.manual_seed(seed)
    marks: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CONTEXT_DIM,
        intermediate_size=4 * CONTEXT_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=CONTEXT_DIM,
        **marks,
    )
    encoder = CLIPTextModel(config)
    if file.exists():
        encoder.load_state_dict(torch.load(file, weights_only=True))
        return encoder.eval()
    questions = [
        list(SHAPES),
        list(PALETTE),
        list(PALETTE),
        list(SIZES),
        list(PLACES),
        ["outlined"],
        ["night"],
    ]
    heads = nn.ModuleList(nn.Linear(CONTEXT_DIM, len(answers) + 1) for answers in questions)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3)
    rng = Random(seed + 1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * _cosine(step, steps)
        scenes, words = _captioned(rng, 128)
        states = encoder(tokenize(tokenizer, words)).last_hidden_state[
            :, -12:
        ]  # the end mark and its repetitions
        answers = torch.tensor(
            [_answers(scene, text) for scene, text in zip(scenes, words, strict=True)]
        )
        losses = [
            F.cross_entropy(head(states).mean(1), answers[:, k]) for k, head in enumerate(heads)
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"text encoder: step {step}, loss {loss.item():.4f}", flush=True)
    torch.save(encoder.state_dict(), file)
    return encoder.eval()


def _captioned(rng: Random, count: int) -> tuple[list[Scene], list[str]]:
    scenes = [sample_scene(rng, variants=VARIANTS) for _ in range(count)]
    return scenes, [
        "" if rng.random() < EMPTY_CAPTIONS else caption(scene, rng) for scene in scenes
    ]


def _answers(scene: Scene, text: str) -> list[int]:
    """The number of the right answer to each question; 0 where the caption does not say."""

    def said(word: str, answers: list[str]) -> int:
        return 1 + answers.index(word) if word in text else 0

    return [
        said(scene.shape, list(SHAPES)),
        1 + list(PALETTE).index(scene.colour) if text else 0,
        1 + list(PALETTE).index(scene.background) if text else 0,
        said(scene.size, list(SIZES)),
        said(scene.place, list(PLACES)),
        int(", outlined" in text),
        int(", at night" in text),
    ]


# --- pictures -------------------------------------------------------------------------------------
# -------------------


def train_vae(file: Path, seed: int, steps: int, batch: int = 16) -> AutoencoderKL:
    """A three-level autoencoder: 64x64 pictures, latents (4, 16, 16) of unit deviation after
    scaling.
    """
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
    nn.init.constant_(
        vae.quant_conv.bias[4:].detach(), -6.0
    )  # start nearly without noise: it would drown the signal
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
            group["lr"] = 1.2e-3 * min(1.0, (step + 1) / 100) * _cosine(step, steps)
        pixels = _pixels([_any_picture(rng) for _ in range(batch)])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            restored = vae.decode(posterior.sample()).sample
        error = (restored.float() - pixels).abs()
        loss = error.mean() + error.square().mean() + 1e-6 * posterior.kl().float().mean() / 256
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        _follow(average, vae, step)
        if step % 200 == 0 or step == steps - 1:
            print(
                f"vae: step {step}, loss {loss.item():.4f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    average.eval()
    with torch.no_grad():
        sample = average.encode(_pixels([_any_picture(rng) for _ in range(256)])).latent_dist.mean
    average.register_to_config(scaling_factor=round(1 / sample.std().item(), 5))
    saved = {"weights": average.state_dict(), "scaling_factor": average.config["scaling_factor"]}
    torch.save(saved, file)
    return average


def _any_picture(rng: Random) -> np.ndarray:
    scene = sample_scene(rng, variants=0.3)
    return np.asarray(render(scene, "neon" if rng.random() < 0.35 else "plain"))


def _pixels(pictures: list[np.ndarray]) -> Tensor:
    """Pictures (64, 64, 3) of 0..255 to one batch (B, 3, 64, 64) of -1..1."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return batch.float().div(127.5).sub(1.0).contiguous()


@torch.no_grad()
def encode_pictures(
    vae: Any, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, seed: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (N, 4, 16, 16), contexts (M, TOKENS, D) of the different captions, and two of them
    for each picture (N, 2).
    """
    rng = Random(seed + 3)
    latents, known, owner = [], {"": 0}, []
    for start in range(0, count, 256):
        scenes = [sample_scene(rng, variants=VARIANTS) for _ in range(min(256, count - start))]
        pixels = _pixels([np.asarray(render(scene)) for scene in scenes])
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
    latents: Tensor,
    contexts: Tensor,
    owner: Tensor,
    file: Path,
    seed: int,
    steps: int,
    batch: int = 64,
) -> UNet2DConditionModel:
    """Denoising with v-prediction; returns the moving average of the weights."""
    torch.manual_seed(seed + 4)
    unet: Any = make_unet().to(memory_format=torch.channels_last)
    unet.set_attn_processor(
        AttnProcessor()
    )  # at this size, plain products beat the fused kernel's backward threefold
    average = copy.deepcopy(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=0.01)
    first = 0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        unet.load_state_dict(saved["unet"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    scheduler: Any = make_scheduler()
    generator = torch.Generator().manual_seed(seed + 5 + first)
    started, total = time.monotonic(), 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 200) * _cosine(step, steps)
        rows = torch.randint(len(latents), (batch,), generator=generator)
        texts = owner[rows, torch.randint(2, (batch,), generator=generator)]
        texts[torch.rand(batch, generator=generator) < EMPTY_CAPTIONS] = 0
        t = torch.randint(1000, (batch,), generator=generator)
        noise = torch.randn(batch, *latents.shape[1:], generator=generator)
        noisy = scheduler.add_noise(latents[rows], noise, t)
        target = scheduler.get_velocity(latents[rows], noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            sample = noisy.contiguous(memory_format=torch.channels_last)
            predicted = unet(sample, t, contexts[texts]).sample
        error = (predicted.float() - target).square().mean((1, 2, 3))
        loss = (
            error.mean()
        )  # unweighted on purpose: min-SNR would take the weight from where obedience is decided
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        _follow(average, unet, step)
        total += loss.item()
        if (step + 1) % 250 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            print(
                f"unet: step {step + 1}, loss {total / ((step - first) % 250 + 1):.5f}, "
                f"{seconds:.0f} s",
                flush=True,
            )
            total = 0.0
        if (step + 1) % 1000 == 0 or step == steps - 1:
            states = {
                "unet": unet.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save({**states, "step": step + 1}, file)
    return average.eval()


def _follow(average: nn.Module, model: nn.Module, step: int) -> None:
    """Move the running average of the weights: over about a tenth of the steps so far, 1,000 at
    most.
    """
    decay = min(0.999, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def _cosine(step: int, steps: int) -> float:
    """From 1 to 0.02 over the run."""
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
