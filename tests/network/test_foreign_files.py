"""Files as other programs leave them: whatever the web UI reads is read, to the same numbers."""

import io
from pathlib import Path

import pytest
import torch
from torch import nn

import hn
from hn.errors import ModelError
from hn.network import a1111, container, files, portability
from hn.network.contents import Contents
from hn.network.portability import Outcome

NET = hn.Hypernetwork.create(
    (8,), activation_func="mish", weight_initialization="Normal", seed=0, name="net"
)


def stored(**changes) -> dict:
    return a1111.to_dict(Contents.of(NET), "net") | changes


def saved(state: dict, *, flat: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=not flat)
    return buffer.getvalue()


def assert_same(path: Path) -> None:
    read, x = hn.load(path), torch.randn(2, 3, 8)
    assert all(torch.equal(a, b) for a, b in zip(read(x, x), NET(x, x), strict=True))


def outcome(path: Path, host: str) -> Outcome:
    judged = portability.judge(files.read(path), path)
    return next(verdict.outcome for verdict in judged if verdict.host == host)


@pytest.mark.parametrize("flat", [False, True])
def test_parameters_that_are_still_trained_are_read(flat, tmp_path):
    state = stored()
    state[8] = tuple({key: nn.Parameter(t) for key, t in side.items()} for side in state[8])
    (tmp_path / "net.pt").write_bytes(saved(state, flat=flat))
    assert_same(tmp_path / "net.pt")
    assert outcome(tmp_path / "net.pt", "ComfyUI") is Outcome.SAME


def test_an_empty_dropout_structure_is_refused_as_there(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(container.write(stored(dropout_structure=[])))
    with pytest.raises(ModelError, match=r"net\.pt: dropout_structure needs one probability"):
        hn.load(path)
