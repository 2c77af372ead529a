"""Files as other programs leave them: whatever the web UI reads is read, to the same numbers."""

import io
import zipfile
from pathlib import Path

import numpy as np
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


def repacked(data: bytes, change) -> bytes:
    """The archive's records that every host knows, their pickle changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            if "/data" in name or name.endswith("/version"):
                content = old.read(name)
                new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return buffer.getvalue()


def assert_same(path: Path) -> None:
    read, x = hn.load(path), torch.randn(2, 3, 8)
    assert all(torch.equal(a, b) for a, b in zip(read(x, x), NET(x, x), strict=True))


def outcome(path: Path, host: str) -> Outcome:
    judged = portability.judge(files.read(path), path)
    return next(verdict.outcome for verdict in judged if verdict.host == host)


def by_numpy_1(pickled: bytes) -> bytes:
    """Its module had another name then; the rest is the same to the byte."""
    assert b"cnumpy._core.multiarray\nscalar\n" in pickled
    return pickled.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


NUMBERS = {
    "step": np.int64(7),
    "layer_structure": [np.float64(1), np.float32(2), np.float64(1)],
    "dropout_structure": [np.float64(0), np.float16(0), np.int32(0)],
    "is_layer_norm": np.bool_(False),
    "use_dropout": np.uint8(0),
    "last_layer_dropout": np.int16(0),
}


@pytest.mark.parametrize("flat", [False, True])
def test_numbers_of_numpy_1_are_read(flat, tmp_path):
    path = tmp_path / "net.pt"
    data = saved(stored(**NUMBERS), flat=flat)
    path.write_bytes(by_numpy_1(data) if flat else repacked(data, by_numpy_1))
    assert_same(path)
    config, step = hn.load(path).config, hn.load(path).provenance.step
    assert (config.layer_structure, type(config.layer_structure[1])) == ((1, 2, 1), float)
    assert (step, type(step), config.is_layer_norm) == (7, int, False)
    assert outcome(path, "A1111") is Outcome.SAME  # its safety check knows them
    assert outcome(path, "ComfyUI") is Outcome.REFUSED  # torch's does not
    files.write(files.read(path), path)
    assert outcome(path, "ComfyUI") is Outcome.SAME


def test_numbers_of_numpy_2_are_refused_by_name(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(stored(**NUMBERS), path)
    with pytest.raises(ModelError, match=r"GLOBAL numpy\._core\.multiarray\.scalar") as caught:
        hn.load(path)
    assert "add_safe_globals" not in str(caught.value)  # we advise nobody to trust it


def test_a_text_of_numpy_is_refused_by_its_kind(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(repacked(saved(stored(name=np.str_("net"))), by_numpy_1))
    with pytest.raises(ModelError, match=r"net\.pt was refused.*a numpy value of kind 'U3'"):
        hn.load(path)


LIES = {
    "too long for it": (b"X\x02\x00\x00\x00i8", b"X\x02\x00\x00\x00i4"),
    "no kind of number": (b"X\x02\x00\x00\x00i8", b"X\x02\x00\x00\x00O8"),
    "no byte order": (b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00x"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_number_that_lies_is_refused(lie, tmp_path):
    path, (true, false) = tmp_path / "net.pt", LIES[lie]
    data = saved(stored(step=np.int64(7)))
    path.write_bytes(repacked(data, lambda pickled: by_numpy_1(pickled).replace(true, false)))
    with pytest.raises(ModelError, match=r"net\.pt was refused"):
        hn.load(path)


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
