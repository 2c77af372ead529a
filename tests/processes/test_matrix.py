"""Every combination of what a step may be made of trains, and resumes to the same bits.

A column is one line of `COLUMNS`: its choices, and the settings that each stands for.
"""

import itertools
import json
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import runs
from tests.processes import matrix

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
COMMAND = [*runs.TORCHRUN[:-1], str(Path(__file__).parent / "matrix.py")]
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
    again += ["--resume_from_checkpoint", "latest"]
    math = "math" in cell.split("-")
    return [
        [math, port, flags] for port, flags in zip(ports(3), (whole, stopped, again), strict=True)
    ]


def ports(count):
    """As many that nobody uses."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)
        ]
        return [server.getsockname()[1] for server in servers]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "cells",
    [pytest.param(SHORT, id="short"), pytest.param(CELLS, marks=pytest.mark.slow, id="all")],
)
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.usefixtures("fresh_accelerate")
def test_it_trains_and_resumes(model, pictures, tmp_path, monkeypatch, cells, processes):
    if cells is SHORT and processes == 2:
        cells = SHORT[1:2]  # the others are trained by two elsewhere
    jobs = [job for cell in cells for job in jobs_of(cell, model, pictures, tmp_path / cell)]
    if processes == 1:
        for variable in matrix.VARIABLES:
            monkeypatch.setenv(variable, "")  # and back afterwards
        matrix.main(jobs)
    else:
        (tmp_path / "jobs.json").write_text(json.dumps(jobs, default=str))
        result = runs.run(COMMAND, [str(tmp_path / "jobs.json")], seconds=800)
        assert result.returncode == 0, result.stderr
    reference = runs.losses(tmp_path / cells[0] / "whole/run")
    for cell in cells:
        whole, stopped = (tmp_path / cell / kind / "run" for kind in ("whole", "stopped"))
        assert runs.same_tensors(whole / "run.pt", stopped / "run.pt"), cell
        assert runs.losses(whole) == runs.losses(stopped), cell
        # what is learnt is the same, to the precision
        tolerance = TOLERANCES[cell.split("-")[0]]
        assert runs.losses(whole) == pytest.approx(reference, rel=tolerance), cell
