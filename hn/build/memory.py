"""How much memory a run will take, by part, and the plan that fits what there is.

    outline = Outline.read("stable-diffusion-v1-5/stable-diffusion-v1-5")
    step = step_of(config, outline, torch.bfloat16)
    print(estimate(config, outline, step, Plan(), device="cuda").table())

Known from settings and the model's configuration alone: no weight is read.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from hn.build.models import DTYPES
from hn.build.start import structure_of
from hn.config import Config
from hn.diffusion.attention import context_dims
from hn.diffusion.memory.autoencoder import Encoders, rehearse_encoders
from hn.diffusion.memory.choice import Rung, choose
from hn.diffusion.memory.plan import Plan, blocks_of, gates_of
from hn.diffusion.memory.quantisation import check_device, stored_nbytes
from hn.diffusion.memory.rehearsal import Step, meta_unet, rehearse
from hn.diffusion.outline import Outline
from hn.errors import OptionError, StorageError
from hn.network.description import HypernetworkConfig
from hn.network.module import Hypernetwork
from hn.training import optimizers

GIB, MIB = 2**30, 2**20
CUDA_ITSELF = 600 * MIB  # context, kernels and their work space; by experience, not by measurement
SPARE = 0.95  # of the GPU's free memory: allocators round, and leave gaps


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
    unet, vae, text = (outline.parts[part] for part in ("unet", "vae", "text_encoder"))
    described = json.dumps(unet, sort_keys=True)
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    dims = context_dims(meta_unet(described, dtype))
    return Step(
        unet=described,
        network=network or structure_of(config.network, config.network.dims or dims),
        dtype=dtype,
        batch=training.train_batch_size,
        height=config.data.size[1] // scale,
        width=config.data.size[0] // scale,
        tokens=text["max_position_embeddings"],
        quantisation=config.memory.quantize_base,
        note_residuals=config.objective.residual_penalty > 0,
        accumulates=training.gradient_accumulation_steps > 1 or processes > 1,
    )


def estimate(
    config: Config, outline: Outline, step: Step, plan: Plan, *, device: str, processes: int = 1
) -> Estimate:
    """What training takes by a plan, on a kind of device such as "cuda"."""
    parts, held = _lasting(config, outline, step, device, processes), rehearse(step, plan)
    if "gradients" not in parts:
        parts["gradients"] = min(_weights(step), held)
        held -= parts["gradients"]
    return Estimate({**parts, "activations": held})


def other_stages(
    config: Config, outline: Outline, step: Step, *, device: str
) -> dict[str, Estimate]:
    """What is taken while pictures are encoded, and while previews are drawn, if they are."""
    encoders = _encoders(config, outline, step.dtype)
    lasting = _lasting(config, outline, step, device, 1)
    base = {name: lasting[name] for name in ("base model", "CUDA itself") if name in lasting}
    both = {"text encoder": encoders.text_encoder, "autoencoder": encoders.autoencoder}
    found = {"encoding pictures": Estimate({**base, **both, "activations": encoders.encoding})}
    if config.validation.validation_prompt:
        parts = {**lasting, "autoencoder": encoders.autoencoder, "activations": encoders.decoding}
        found["drawing previews"] = Estimate(parts)
    return found


def build_plan(
    config: Config,
    accelerator: Accelerator,
    outline: Outline | None,
    hypernetwork: Hypernetwork | None,
) -> Plan | None:
    """The cheapest plan that fits memory_budget_gib, or else the free memory of a GPU; None where
    there is nothing to choose. `hypernetwork` is the one to go on from, if there is one.

    Raises `StorageError` with the numbers if no plan fits the budget, `OptionError` for what needs
    a GPU where there is none, and for a budget where the base model has no `outline`.
    """
    _check_device(config, accelerator.device)
    budget = config.memory.memory_budget_gib
    room = _free(config, accelerator.device) if budget is None else int(budget * GIB)
    if room is None or (outline is None and budget is None):
        return None
    if outline is None:
        raise OptionError(
            "memory_budget_gib needs the base model's configuration, which a .ckpt or a hub that "
            "cannot be reached does not tell: give a folder or a .safetensors file, or "
            "gradient_checkpointing instead"
        )
    processes = accelerator.num_processes
    network = None if hypernetwork is None else hypernetwork.config
    dtype, device = DTYPES[accelerator.mixed_precision], accelerator.device.type
    step = step_of(config, outline, dtype, network=network, processes=processes)
    lasting = sum(_lasting(config, outline, step, device, processes).values())
    rung = choose(
        step,
        room - lasting,
        # On CUDA autocast has plain norms keep float32, which no rehearsal sees.
        plain=device != "cuda" or dtype == torch.float32,
        offload=config.memory.offload_activations,
        quiet=not accelerator.is_main_process,
    )
    found = estimate(config, outline, step, rung.plan, device=device, processes=processes)
    if budget is not None and found.total > room:
        raise StorageError(_too_little(budget, found))
    accelerator.print(_in_words(found, room, step, rung))
    for name, stage in other_stages(config, outline, step, device=device).items():
        more = ", which is more than there is" if stage.total > room else ""
        accelerator.print(f"  {name} takes {stage.total / GIB:.2f} GiB{more}")
    return rung.plan


def _check_device(config: Config, device: torch.device) -> None:
    """Refuse what saves the memory of a GPU where there is none."""
    check_device(config.memory.quantize_base, device)
    if device.type != "cpu":
        return
    if config.memory.offload_activations:
        raise OptionError(
            "offload_activations moves what a GPU keeps to the host's memory, and there is no GPU: "
            "leave it out"
        )
    if optimizers.is_paged(config.optimizer):
        raise OptionError(
            f"optimizer {config.optimizer.optimizer} moves its state between the memory of a GPU "
            "and the host's, and there is no GPU: give the same one without Paged"
        )


def _free(config: Config, device: torch.device) -> int | None:
    """The free bytes of a GPU, if the settings leave the plan to us; None otherwise."""
    left = config.memory.frozen_aware == "auto" and not config.memory.offload_activations
    left = left and not config.model.shard_base_model
    if device.type != "cuda" or config.training.gradient_checkpointing or not left:
        return None
    return int(SPARE * torch.cuda.mem_get_info(device)[0])


def _lasting(
    config: Config, outline: Outline, step: Step, device: str, processes: int
) -> dict[str, int]:
    """The bytes of what lies there all the while, by part."""
    weights = _weights(step)
    paged = optimizers.is_paged(config.optimizer)  # to the host, and here when there is room
    parts = {
        "base model": stored_nbytes(_unet(step), step.quantisation),
        "hypernetwork": weights,
        "its average": weights * config.training.use_ema,
        "optimizer": 0 if paged else optimizers.state_bytes(config.optimizer, weights),
        "gradients": weights * step.accumulates * (2 if processes > 1 else 1),  # and DDP's buckets
        "CUDA itself": CUDA_ITSELF * (device == "cuda"),
    }
    if config.data.streaming:
        encoders = _encoders(config, outline, step.dtype)
        parts["encoders of the stream"] = encoders.autoencoder + encoders.text_encoder
    return {name: size for name, size in parts.items() if size}


def _encoders(config: Config, outline: Outline, dtype: torch.dtype) -> Encoders:
    vae, text = (json.dumps(outline.parts[part]) for part in ("vae", "text_encoder"))
    return rehearse_encoders(vae, text, dtype, config.data.size, config.data.vae_batch_size)


def _unet(step: Step) -> UNet2DConditionModel:
    return meta_unet(step.unet, step.dtype, step.quantisation)


def _weights(step: Step) -> int:
    with torch.device("meta"):
        return _nbytes(Hypernetwork(step.network, draw_weights=False).parameters())


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _in_words(found: Estimate, room: int, step: Step, rung: Rung) -> str:
    plan, unet = rung.plan, _unet(step)
    again = [
        f"{len(names)} of {len(of)} {kind}"
        for kind, names, of in (
            ("gates", plan.gates, gates_of(unet)),
            ("blocks", plan.blocks, blocks_of(unet)),
        )
        if names
    ]
    means = ["frozen layers keep only what they must"] * plan.frozen_aware
    if again:
        work = rung.cost.operations / 1e9
        means.append(f"{' and '.join(again)} are computed again ({work:.0f} GFLOP a micro-batch)")
    means += ["activations lie in the host's memory"] * plan.offload
    return (
        f"memory: {found.total / GIB:.2f} of {room / GIB:.2f} GiB; "
        f"{', '.join(means) or 'everything is kept'}\n{found.table()}"
    )


def _too_little(budget: float, least: Estimate) -> str:
    return (
        f"memory_budget_gib {budget} is too little: with everything computed again, this run takes "
        f"{least.total / GIB:.2f} GiB\n{least.table()}\nLower train_batch_size (and raise "
        "gradient_accumulation_steps) or resolution, give fewer dims or a smaller layer_structure, "
        "use_8bit_adam, or quantize_base fp8; on a GPU also offload_activations."
    )
