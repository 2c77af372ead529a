"""How much memory a run will take, by part.

    outline = Outline.read("stable-diffusion-v1-5/stable-diffusion-v1-5")
    step = step_of(config, outline, torch.bfloat16)
    print(estimate(config, outline, step, Plan(), device="cuda").table())

Known from settings and the model's configuration alone: no weight is read.
"""

import json
from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from hn.build.structure import structure_of
from hn.config import Config, OptimizerConfig
from hn.diffusion.loading.outline import Outline
from hn.diffusion.memory.autoencoder import Encoders, rehearse_encoders
from hn.diffusion.memory.plan import Plan
from hn.diffusion.memory.quantisation import stored_nbytes
from hn.diffusion.memory.rehearsal import Step, meta_unet, rehearse, rehearse_drawing
from hn.diffusion.pipeline import DRAWN_AT_ONCE
from hn.network.contents import skeleton
from hn.network.description import HypernetworkConfig
from hn.training import optimizers, zero

GIB, MIB = 2**30, 2**20
CUDA_ITSELF = 600 * MIB  # context, kernels and their work space; by experience, not by measurement


@dataclass(frozen=True)
class Estimate:
    """The bytes that a process holds at the peak of a training step, by part."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All of them, in bytes."""
        return sum(self.parts.values())

    def table(self) -> str:
        """A line for each part, in MiB."""
        rows = {**self.parts, "in all": self.total}
        width = max(map(len, rows))
        return "\n".join(f"  {name:<{width}} {size / MIB:8.0f} MiB" for name, size in rows.items())


def step_of(
    config: Config,
    outline: Outline,
    dtype: torch.dtype,
    *,
    network: HypernetworkConfig | None = None,
    processes: int = 1,
) -> Step:
    """The micro-batch of a run's settings; `network` is that of a file it goes on from.

    Contexts are taken to be one chunk long, and pictures as large as the resolution.
    """
    training = config.training
    described = json.dumps(outline.parts["unet"], sort_keys=True)
    return Step(
        unet=described,
        network=network or structure_of(config.network, meta_unet(described, dtype), outline.name),
        dtype=dtype,
        batch=training.train_batch_size,
        height=config.data.size[1] // outline.downscaling,
        width=config.data.size[0] // outline.downscaling,
        tokens=outline.tokens,
        quantisation=config.memory.quantize_base,
        note_residuals=config.objective.residual_penalty > 0,
        accumulates=training.gradient_accumulation_steps > 1 or processes > 1,
    )


def estimate(
    config: Config, outline: Outline, step: Step, plan: Plan, *, device: str, processes: int = 1
) -> Estimate:
    """What training takes by a plan, on a kind of device such as "cuda"."""
    parts, held = lasting_parts(config, outline, step, device, processes), rehearse(step, plan)
    if "gradients" not in parts:
        parts["gradients"] = min(_weights(step), held)
        held -= parts["gradients"]
    return Estimate({**parts, "activations": held})


def other_stages(
    config: Config, outline: Outline, step: Step, *, device: str
) -> dict[str, Estimate]:
    """What is taken while pictures are encoded, and while previews are drawn, if they are."""
    encoders = _encoders(config, outline, step.dtype)
    lasting = lasting_parts(config, outline, step, device, 1)
    base = {name: lasting[name] for name in ("base model", "CUDA itself") if name in lasting}
    both = {"text encoder": encoders.text_encoder, "autoencoder": encoders.autoencoder}
    found = {"encoding pictures": Estimate({**base, **both, "activations": encoders.encoding})}
    if prompts := len(config.validation.validation_prompt):
        guided = 2 if config.validation.validation_guidance_scale > 1 else 1
        drawing = rehearse_drawing(step, guided * min(prompts, DRAWN_AT_ONCE))
        found["drawing previews"] = Estimate({**lasting, "activations": drawing})
        parts = {**lasting, "autoencoder": encoders.autoencoder, "activations": encoders.decoding}
        found["decoding previews"] = Estimate(parts)
    return found


def lasting_parts(
    config: Config, outline: Outline, step: Step, device: str, processes: int
) -> dict[str, int]:
    """The bytes of what lies there all the while, by part."""
    weights = _weights(step)
    parts = {
        "base model": stored_nbytes(unet_of(step), step.quantisation),
        "hypernetwork": weights,
        "its average": weights * config.training.use_ema,
        **_learning_parts(config.optimizer, weights, processes, accumulates=step.accumulates),
        "CUDA itself": CUDA_ITSELF * (device == "cuda"),
    }
    if config.data.streaming:
        encoders = _encoders(config, outline, step.dtype)
        parts["encoders of the stream"] = encoders.autoencoder + encoders.text_encoder
    return {name: size for name, size in parts.items() if size}


def _learning_parts(
    optimizer: OptimizerConfig, weights: int, processes: int, *, accumulates: bool
) -> dict[str, int]:
    """Those of the optimizer and of gradients, for weights of so many bytes."""
    paged = optimizers.is_paged(optimizer)  # to the host, and here when there is room
    state = 0 if paged else optimizers.state_bytes(optimizer, weights)
    if optimizer.shard_optimizer:  # a part of each, and of the weights a copy that is stepped
        bucket = min(weights, zero.BUCKET * torch.float32.itemsize)
        part = {"optimizer": (state + weights) // processes}
        return part | {"gradients": weights // processes + bucket}
    exchanged = 2 if processes > 1 else 1  # DDP's buckets
    return {"optimizer": state, "gradients": weights * accumulates * exchanged}


def _encoders(config: Config, outline: Outline, dtype: torch.dtype) -> Encoders:
    vae, data = json.dumps(outline.parts["vae"]), config.data
    return rehearse_encoders(vae, outline.text_weights, dtype, data.size, data.vae_batch_size)


def unet_of(step: Step) -> UNet2DConditionModel:
    """Without weights."""
    return meta_unet(step.unet, step.dtype, step.quantisation)


def _weights(step: Step) -> int:
    return sum(weight.nbytes for weight in skeleton(step.network).parameters())
