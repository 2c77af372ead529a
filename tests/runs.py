"""Starting real training runs, in processes of their own or in this one."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import hn
from hn import cli

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "train_hypernetwork.py")
Finished = subprocess.CompletedProcess[str]
PYTHON = [sys.executable, SCRIPT]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TORCHRUN += ["--standalone", "--nproc_per_node", "2", SCRIPT]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
NEEDS_DEEPSPEED = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="needs the extra deepspeed, which is not installed here"
)


def settings(model: Path, pictures: Path, output: Path, **changes: Any) -> list[str]:
    """Flags of a small run; a value of True is a bare flag, None leaves the setting out."""
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": pictures,
        "output_dir": output,
        "name": "run",
        "resolution": 16,
        "max_train_steps": 6,
        "train_batch_size": 2,
        "learning_rate": "1e-3",
        "allow_high_learning_rate": True,
        "checkpointing_steps": 0,
        "report_to": "none",
        "logging_steps": 1,
    } | changes
    flags: list[str] = []
    for name, value in values.items():
        if value is None:
            continue
        items = value if isinstance(value, list | tuple) else [] if value is True else [value]
        flags += [f"--{name}", *map(str, items)]
    return flags


def start(launcher: list[str], flags: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a run in a process group of its own."""
    return subprocess.Popen(
        [*launcher, *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(
    launcher: list[str], flags: list[str], seconds: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end and return exit code and output."""
    with start(launcher, flags, **environment) as process:
        out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(path: Path, seconds: float = 90) -> None:
    """Until there is such a file; the name may be a pattern."""
    end = time.monotonic() + seconds
    while not any(path.parent.glob(path.name)):
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def processes_with(*texts: str) -> list[int]:
    """The processes whose command lines hold these texts, running or stopped."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may have ended meanwhile
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
            if all(text in line for text in texts):
                found.append(int(folder.name))
    return found


def forget_accelerate() -> None:
    """Accelerate keeps its state in classes; a run in this process starts without."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train_here(flags: list[str]) -> int:
    """Run the script's own `main` in this process (needs the fixture `fresh_accelerate`)."""
    sys.path.insert(0, str(ROOT))
    import train_hypernetwork

    return train_hypernetwork.main(cli.parse(flags))


def status(folder: Path) -> dict[str, Any]:
    """The run's `status.json`."""
    return json.loads((folder / "status.json").read_text())


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """The training losses, in order."""
    return numbers(folder, "loss")


def numbers(folder: Path, name: str) -> list[float]:
    """All that was reported under a name, in order."""
    return [row[name] for row in metrics(folder) if name in row]


def largest_difference(first: Path, second: Path, *, without: str = "-") -> float:
    """The largest difference between the weights of two hypernetwork files, `without` some."""
    ours, theirs = hn.load(first).tensors(), hn.load(second).tensors()
    assert ours.keys() == theirs.keys()
    return max(float((ours[k] - theirs[k]).abs().max()) for k in ours if without not in k)


def train_and_resume(flags: list[str], folder: Path) -> tuple[Path, Path]:
    """A run of 4 steps in `folder`, and the same gone on with from its checkpoint at step 2."""
    forget_accelerate()
    assert train_here(flags) == 0
    whole = shutil.copytree(folder / "run", folder / "whole")
    shutil.rmtree(folder / "run/checkpoints/step-00000004")
    forget_accelerate()
    assert train_here([*flags, "--resume_from_checkpoint", "latest"]) == 0
    forget_accelerate()
    return whole, folder / "run"


def same_tensors(first: Path, second: Path) -> bool:
    """Whether two hypernetwork files hold the same bits."""
    pairs = zip(hn.load(first).tensors().values(), hn.load(second).tensors().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def assert_same(first: Path, second: Path) -> None:
    """Two finished runs with held-out pictures: the same losses and weights, to the bit."""
    held_out = [metrics(folder)[-1]["heldout_loss"] for folder in (first, second)]
    assert held_out[0] == held_out[1]
    assert losses(first) == losses(second)
    assert same_tensors(first / f"{first.name}.pt", second / f"{second.name}.pt")
