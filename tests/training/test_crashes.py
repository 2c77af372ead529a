"""A save that ends anywhere leaves the checkpoint before it or its own; any damage is found."""

import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from accelerate import Accelerator

from hn.errors import StorageError
from hn.network.module import Hypernetwork
from hn.training.averages import Averages, Ema, View
from hn.training.keeping.checkpoint import MANIFEST, fault, find, tidy, write_checkpoint
from hn.training.keeping.retention import Retention
from hn.training.keeping.saving import Checkpoints
from hn.training.state import TrainingState
from tests import runs

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.fsync")
STOPPED = 77  # exit code of a process that ended on purpose
UNREACHED = 78  # and of one that saved with fewer calls


def make_state(steps: int, dim: int = 8) -> TrainingState:
    net = Hypernetwork.create((dim,), seed=0, weight_initialization="XavierNormal")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    averages = Averages([View(), Ema(net, 0.9)])
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
        averages.update()
    return TrainingState(net, optimizer, step=steps, averages=averages)


def saver(folder: Path) -> Checkpoints:
    retention = Retention(every=1, limit=2)
    return Checkpoints(Accelerator(cpu=True), folder, "net", retention=retention, keep_best=True)


def fail_at(number: int, act) -> Iterator[int]:
    """Act at the so-manieth call to the system that writes; returns what counts them.

    Only for a process that ends soon.
    """
    count = iter(range(10**6))
    fsync = os.fsync

    def audit(event: str, arguments: tuple) -> None:
        writing = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if event in EVENTS and writing and next(count) == number:
            act()

    def synced(descriptor: int) -> None:
        audit("os.fsync", (descriptor,))
        fsync(descriptor)

    sys.addaudithook(audit)
    os.fsync = synced
    return count


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def in_a_fork(act) -> int:
    """Exit code of a process that does this, and nothing after it."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 70
        try:
            code = act()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def save_and_fail(folder: Path, state: TrainingState, number: int, *, crash: bool) -> int:
    """Exit code: 0 if it saved all the same, 5 if it failed as it should."""

    def act() -> int:
        checkpoints = saver(folder)
        calls = fail_at(number, (lambda: os._exit(STOPPED)) if crash else full)
        try:
            checkpoints.save(state)
        except StorageError as error:
            return 5 if "No space left" in str(error) and "MiB are free" in str(error) else 70
        return 0 if next(calls) > number else UNREACHED

    return in_a_fork(act)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("step", "crash"), [(3, True), (2, True), (3, False)], ids=["new", "again", "full"]
)
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_save_that_fails_at_any_call_leaves_the_old_or_the_new(tmp_path, step, crash, every):
    """Steps 1 and 2 are there; 3 is saved, and 1 removed; or 2 is saved once more."""
    start, states = tmp_path / "start", {number: make_state(number) for number in (1, 2, 3)}
    for number in (1, 2):
        write_checkpoint(start / f"step-{number:08d}", states[number], "net")
    states[3].best.step = states[2].best.step = 2
    codes = []
    while not codes or codes[-1] != UNREACHED:
        folder = tmp_path / f"{len(codes)}"
        shutil.copytree(start, folder)
        codes.append(save_and_fail(folder, states[step], every * len(codes), crash=crash))
        tidy(folder)
        found, _ = find(folder, "latest")
        assert found.name in ("step-00000002", f"step-{step:08d}")
        if codes[-1] in (0, UNREACHED):
            assert found.name == f"step-{step:08d}"
        left = {path.name for path in folder.iterdir()}
        assert left <= {"step-00000001", "step-00000002", "step-00000003", "best"}, left
        assert sum(fault(path) is None for path in folder.glob("step-*")) >= 2
        shutil.rmtree(folder)
    assert set(codes) == ({STOPPED, UNREACHED} if crash else {0, 5, UNREACHED})
    assert every * len(codes) >= 40


def damages(content: bytes, draw: Random):
    """The content flipped, cut and lengthened."""
    for bit in range(8):
        for place in {
            0,
            len(content) // 2,
            len(content) - 1,
            *draw.choices(range(len(content)), k=6),
        }:
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            yield bytes(changed)
    for length in {0, 1, len(content) // 2, len(content) - 1, draw.randrange(len(content))}:
        yield content[:length]
    yield content + b"\0"
    yield content + b"\n"
    yield bytes(len(content))


def test_no_damage_of_any_file_is_accepted(tmp_path):
    path, draw, tried = tmp_path / "step-00000002", Random(0), 0
    write_checkpoint(path, make_state(2), "net", "AdamW")
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    assert len(files) == 9
    for file in files:
        content = file.read_bytes()
        for damaged in damages(content, draw):
            file.write_bytes(damaged)
            assert fault(path) is not None, (file, damaged)
            tried += 1
        file.unlink()
        assert fault(path) is not None
        file.write_bytes(content)
        assert fault(path) is None
    assert tried >= 500
    assert MANIFEST in {file.name for file in files}


def test_a_full_disk_makes_room_once(tmp_path, monkeypatch, capsys):
    """Of what the limit allows to go; what is saved then is whole."""
    retention = Retention(every=1, limit=4, keep_every=2)
    checkpoints = Checkpoints(Accelerator(cpu=True), tmp_path, "net", retention=retention)
    for step in range(1, 5):
        checkpoints.save(make_state(step))
    real, failures = os.replace, [OSError(errno.ENOSPC, "No space left on device")]

    def replace(source, target):
        if failures:
            raise failures.pop()
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    checkpoints.save(make_state(5))
    assert "Removed: step-00000001. It is tried once more." in capsys.readouterr().err
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"step-0000000{step}" for step in (2, 3, 4, 5)]
    assert all(fault(path) is None for path in tmp_path.iterdir())


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_on_a_full_disk_ends_with_5_and_what_it_saved(
    model, pictures, tmp_path, monkeypatch, capsys
):
    real = os.replace

    def replace(source, target):
        if "step-00000004" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    flags = runs.settings(model, pictures, tmp_path, checkpointing_steps=2)
    assert runs.train_here(flags) == 5
    error = capsys.readouterr().err
    for words in ("step-00000004: cannot write", "It is tried once more", "MiB are free there"):
        assert words in error
    assert runs.status(tmp_path / "run")["exit_code"] == 5
    kept = [path.name for path in (tmp_path / "run/checkpoints").iterdir()]
    assert kept == ["step-00000002"]
    monkeypatch.undo()
    assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 0


@pytest.mark.slow
def test_integrity_costs_little(tmp_path):
    """Flushing, hashing and reading back 264 MB: a hypernetwork of SD 1 with Adam's moments."""
    state = make_state(1)
    state.hypernetwork = Hypernetwork.create((320, 640, 768, 1280), seed=0)
    state.optimizer = torch.optim.AdamW(state.hypernetwork.parameters(), lr=1e-3)
    state.averages = Averages()
    for parameter in state.hypernetwork.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    times = []
    for _ in range(3):
        began = time.process_time()
        write_checkpoint(tmp_path / "step-00000001", state, "net")
        whole = time.process_time() - began
        began = time.process_time()
        assert fault(tmp_path / "step-00000001") is None
        times.append((whole, time.process_time() - began))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) / 2**20
    print(f"{size:.0f} MiB: CPU s of a save, of one reading with its hash: {times}")
    assert 2 * min(reading for _, reading in times) * 264 / size < 0.5  # for manifest and check
