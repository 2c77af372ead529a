"""Every combination of what a step may be made of trains, and resumes to the same bits.

A column is one line of `COLUMNS`: its choices, and the settings that each stands for.
"""

import itertools

import pytest
import torch

from tests import runs

AOT = {"torch_compile_backend": "aot_eager"}  # differentiates as inductor does, and compiles fast
COLUMNS = {
    "precision": {"fp32": {"mixed_precision": "no"}, "bf16": {"mixed_precision": "bf16"}},
    "memory": {
        "plain": {},
        "checkpointing": {"gradient_checkpointing": True},
        "budget": {"memory_budget_gib": 0.0019},  # most blocks of fp32, none of bf16
    },
    "attention": {"sdpa": {}, "math": {}},
    "compile": {"eager": {}, "compiled": {"torch_compile": True, **AOT}},
}
CELLS = ["-".join(cell) for cell in itertools.product(*COLUMNS.values())]
SHORT = [
    "fp32-plain-math-eager",
    "bf16-checkpointing-sdpa-eager",
    "fp32-budget-sdpa-eager",
]
STEPS = 4
# of the first losses: those of a bf16 UNet have 8 bits
TOLERANCES = {"fp32": 1e-5, "bf16": 3e-2}


def settings_of(cell):
    """What a cell stands for."""
    found = {}
    for choice, choices in zip(cell.split("-"), COLUMNS.values(), strict=True):
        found |= choices[choice]
    return found


def jobs_of(cell, model, pictures, folder):
    """One run, one that ends in the middle, and what goes on from there."""
    changes = {"latent_sampling": "random", "max_train_steps": STEPS, **settings_of(cell)}
    whole = runs.settings(model, pictures, folder / "whole", **changes)
    changes |= {"checkpointing_steps": STEPS // 2}
    half = {**changes, "max_train_steps": STEPS // 2}
    stopped = runs.settings(model, pictures, folder / "stopped", **half)
    again = runs.settings(model, pictures, folder / "stopped", **changes)
    return [whole, stopped, [*again, "--resume_from_checkpoint", "latest"]]


def forbid_kernels(_folder, _rank):
    """Let a process of the zygote compute attention by plain products."""
    torch.backends.cuda.enable_flash_sdp(False)  # means a CPU's, too
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "cells",
    [pytest.param(SHORT, id="short"), pytest.param(CELLS, marks=pytest.mark.slow, id="all")],
)
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_it_trains_and_resumes(zygote, model, pictures, tmp_path, cells, processes):
    if cells is SHORT and processes == 2:
        cells = SHORT[1:2]  # the others are trained by two elsewhere
    for cell in cells:
        before = forbid_kernels if "math" in cell.split("-") else None
        for flags in jobs_of(cell, model, pictures, tmp_path / cell):
            ended = zygote.run(flags, tmp_path / "logs", processes, before=before)
            assert ended.codes == [0] * processes, (cell, ended.said)
    reference = runs.losses(tmp_path / cells[0] / "whole/run")
    for cell in cells:
        whole, stopped = (tmp_path / cell / kind / "run" for kind in ("whole", "stopped"))
        assert runs.same_tensors(whole / "run.pt", stopped / "run.pt"), cell
        assert runs.losses(whole) == runs.losses(stopped), cell
        # what is learnt is the same, to the precision
        tolerance = TOLERANCES[cell.split("-")[0]]
        assert runs.losses(whole) == pytest.approx(reference, rel=tolerance), cell
