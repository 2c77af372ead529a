"""Checkpoints are whole or absent, and give back every bit of the optimizer."""

import errno
import os

import pytest
import torch

from hn.errors import ModelError, OptionError, StorageError
from hn.network.module import Hypernetwork
from hn.training.keeping import checkpoint
from hn.training.keeping.checkpoint import fault, find, restore, write_checkpoint
from hn.training.optimizers import find_class
from hn.training.state import TrainingState

OPTIMIZERS = [
    "AdamW",
    "SGD",
    "Adagrad",
    "RMSprop",
    "Adafactor",
    "NAdam",
    "bitsandbytes.optim.AdamW8bit",
    "bitsandbytes.optim.Lion8bit",
]


def _state(name: str = "AdamW", steps: int = 2, seed: int = 0) -> TrainingState:
    """A hypernetwork large enough for 8-bit states (4096 elements and more), after some steps."""
    net = Hypernetwork.create((64,), seed=seed, weight_initialization="XavierNormal")
    optimizer = find_class(name)(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return TrainingState(net, optimizer, step=steps, fingerprint={"seed": seed, "dims": (64,)})


def _same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and all(map(_same, first, second))
    return first == second


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_comes_back_to_the_bit_and_goes_on_alike(tmp_path, name):
    state = _state(name)
    write_checkpoint(tmp_path / "step-00000002", state, "net")
    fresh = _state(name, steps=0)
    restore(tmp_path / "step-00000002", fresh)
    assert fresh.step == 2
    assert _same(state.optimizer.state_dict(), fresh.optimizer.state_dict())
    for each in (state, fresh):
        for parameter in each.hypernetwork.parameters():
            parameter.grad = torch.ones_like(parameter)
        each.optimizer.step()
    first, second = (s.hypernetwork.tensors() for s in (state, fresh))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "file", ["net-2.pt", "net-2.safetensors", "state.json", checkpoint.OPTIMIZER]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
def test_any_damage_is_found(tmp_path, file, damage):
    path = tmp_path / "step-00000002"
    write_checkpoint(path, _state(), "net")
    assert fault(path) is None
    content = bytearray((path / file).read_bytes())
    if damage == "remove":
        (path / file).unlink()
    else:
        content[len(content) // 2] ^= 1
        kept = {"flip": content, "cut": content[:-1], "empty": b""}[damage]
        (path / file).write_bytes(kept)
    assert file in (fault(path) or "")
    with pytest.raises(ModelError, match="changed or missing"):
        restore(path, _state())
    with pytest.raises(ModelError, match="no valid checkpoint"):
        find(tmp_path, "latest")


def test_an_added_file_or_a_missing_manifest_is_found(tmp_path):
    path = tmp_path / "step-00000002"
    write_checkpoint(path, _state(), "net")
    (path / "resume/evil.pkl").write_bytes(b"x")
    assert "evil.pkl" in (fault(path) or "")
    (path / "MANIFEST.json").unlink()
    assert "MANIFEST.json" in (fault(path) or "")


@pytest.mark.parametrize("fails_at", range(7))
def test_a_full_disk_leaves_the_old_checkpoint_and_no_litter(tmp_path, monkeypatch, fails_at):
    """Each rename in turn fails as on a full disk: of five files, the folder, and no more."""
    write_checkpoint(tmp_path / "step-00000001", _state(steps=1), "net")
    real, count = os.replace, iter(range(100))

    def replace(source, target):
        if next(count) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    if fails_at < 6:
        with pytest.raises(StorageError, match="No space left on device"):
            write_checkpoint(tmp_path / "step-00000002", _state(), "net")
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    else:
        write_checkpoint(tmp_path / "step-00000002", _state(), "net")
        assert fault(tmp_path / "step-00000002") is None
    assert fault(tmp_path / "step-00000001") is None


def test_another_runs_checkpoint_is_refused_with_what_differs(tmp_path):
    write_checkpoint(tmp_path / "step-00000002", _state(seed=0), "net")
    with pytest.raises(OptionError) as error:
        restore(tmp_path / "step-00000002", _state(seed=1))
    assert "seed: 0 then, 1 now" in str(error.value)
    assert "dims" not in str(error.value)


def test_an_unfinished_folder_is_no_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "step-00000002", _state(), "net")
    (tmp_path / ".tmp-step-00000003-1").mkdir()
    assert find(tmp_path, "latest") == (tmp_path / "step-00000002", {})


def test_a_step_saved_again_replaces_the_old_folder_and_leaves_no_litter(tmp_path):
    path = tmp_path / "step-00000002"
    write_checkpoint(path, _state(), "net")
    write_checkpoint(path, _state(seed=1), "net")
    assert fault(path) is None
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    restore(path, _state(seed=1))


def test_a_failed_replacement_keeps_the_older_checkpoints(tmp_path, monkeypatch):
    """The folder that was to be replaced is still there to be found, if under its other name."""
    write_checkpoint(tmp_path / "step-00000001", _state(steps=1), "net")
    path = tmp_path / "step-00000002"
    write_checkpoint(path, _state(), "net")
    real = os.replace

    def replace(source, target):
        if target == path:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(StorageError, match="No space left on device"):
        write_checkpoint(path, _state(), "net")
    assert fault(tmp_path / "step-00000001") is None
    assert fault(tmp_path / ".del-step-00000002") is None
