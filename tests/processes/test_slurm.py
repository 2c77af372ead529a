"""The cluster's script, with stand-ins for srun and scontrol, around the real trainer."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests import runs

SCRIPT = str(runs.ROOT / "accelerate_configs/slurm.sbatch")
STAND_INS = {
    # one node: what comes after the options, with the signals that Slurm sends to a step
    "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
    "scontrol": '[[ $1 == show ]] && echo localhost || echo "$@" >> "$REQUEUED"',
    "torchrun": 'exec python -m torch.distributed.run "$@"',
}


def test_it_is_a_script():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


@pytest.fixture
def cluster(tmp_path):
    """The environment of a job's script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    python = Path(runs.PYTHON[0]).parent
    return {
        "PATH": f"{folder}:{python}:{os.environ['PATH']}",
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_TMPDIR": str(tmp_path / "node"),
        "MASTER_PORT": str(port),
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_warned_it_saves_and_queues_again_until_done(model, pictures, tmp_path, cluster):
    run, requeued = tmp_path / "runs/run", tmp_path / "requeued"
    flags = runs.settings(
        model,
        pictures,
        None,
        output_dir=None,
        name=None,
        max_train_steps=150,
        checkpointing_steps=3,
        expect_world_size=2,
    )
    with runs.start(["bash", SCRIPT, str(run)], flags, **cluster) as job:
        runs.wait_for(run / "checkpoints/step-00000003/MANIFEST.json")
        for line in ("torch.distributed.run", "train_hypernetwork.py"):
            for pid in runs.processes_with(line, str(tmp_path)):
                os.kill(pid, signal.SIGUSR1)
        _, error = job.communicate(timeout=240)
    assert job.returncode == 75, error
    assert requeued.read_text() == "requeue 7\n"
    step = runs.status(run)["step"]
    assert 3 <= step < 150
    with runs.start(["bash", SCRIPT, str(run)], flags, **cluster, SLURM_RESTART_COUNT="1") as job:
        out, error = job.communicate(timeout=240)
    assert job.returncode == 0, error
    assert f"at step {step}" in out
    assert "6 of 6 pictures were in the cache" in out
    assert runs.status(run)["state"] == "done"
    assert requeued.read_text() == "requeue 7\n"
