"""The plan that fits what memory there is, and what to change where none does."""

from dataclasses import replace

import torch
from accelerate import Accelerator

from hn.build.estimates import (
    GIB,
    Estimate,
    estimate,
    lasting_parts,
    other_stages,
    step_of,
    unet_of,
)
from hn.build.models import DTYPES
from hn.build.remedies import Run, in_words, remedies
from hn.config import Config
from hn.diffusion.loading.outline import Outline
from hn.diffusion.memory.choice import Rung, choose
from hn.diffusion.memory.plan import Plan, blocks_of, gates_of
from hn.diffusion.memory.quantisation import check_device
from hn.diffusion.memory.rehearsal import Step
from hn.errors import OptionError, StorageError
from hn.network.module import Hypernetwork
from hn.training import optimizers

SPARE = 0.95  # of the GPU's free memory: allocators round, and leave gaps
_PREVIEWS = "give quantize_base fp8, a lower resolution, or no validation_prompt"
SMALLER = {
    "encoding pictures": "give quantize_base fp8, a lower resolution, or vae_batch_size 1",
    "drawing previews": _PREVIEWS,
    "decoding previews": _PREVIEWS,
}
"""What makes a stage take less."""


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
    lasting = sum(lasting_parts(config, outline, step, device, processes).values())
    rung = choose(
        step,
        room - lasting,
        # On CUDA autocast has plain norms keep float32, which no rehearsal sees.
        plain=device != "cuda" or dtype == torch.float32,
        offload=config.memory.offload_activations,
        quiet=not accelerator.is_main_process,
    )
    found = estimate(config, outline, step, rung.plan, device=device, processes=processes)
    if found.total > room:
        training = replace(config.training, mixed_precision=accelerator.mixed_precision)
        run = Run(replace(config, training=training), outline, device, processes, network)
        advice = in_words(remedies(run, room, quiet=not accelerator.is_main_process), room)
        if budget is not None:
            raise StorageError(_too_little(budget, found, advice))
        accelerator.print(advice)
    accelerator.print(_told(found, room, step, rung))
    for name, stage in other_stages(config, outline, step, device=device).items():
        more = f", which is more than there is: {SMALLER[name]}" if stage.total > room else ""
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


def _told(found: Estimate, room: int, step: Step, rung: Rung) -> str:
    plan, unet = rung.plan, unet_of(step)
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


def _too_little(budget: float, least: Estimate, advice: str) -> str:
    return (
        f"memory_budget_gib {budget} is too little: with everything computed again, this run takes "
        f"{least.total / GIB:.2f} GiB\n{least.table()}\n{advice}\nAlso: fewer dims, a smaller "
        "layer_structure, and on a GPU offload_activations."
    )
