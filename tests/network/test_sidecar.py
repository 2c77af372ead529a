"""`.pt.optim`: read as the web UI reads it, written so that the web UI accepts it."""

import hashlib
import io
import re
import zipfile

import pytest
import torch

import hn
from hn.errors import ModelError
from hn.network import container, sidecar
from hn.network.sidecar import Sidecar
from hn.training.keeping import artifacts
from tests import golden

FILES = golden.FOLDER / "files"
FORWARD = golden.read_json("forward.json")
STORED = sorted(FILES.glob("*.optim"))
# Of the published safety check's list, what an optimizer state needs.
ALLOWED = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"}
OPTIMIZERS = {"AdamW": {}, "Adam": {}, "SGD": {"momentum": 0.9}, "Adafactor": {}, "NAdam": {}}


def trained(name="AdamW", dims=(16, 8)):
    """A hypernetwork and its optimizer after two steps."""
    net = hn.Hypernetwork.create(dims, activation_func="prelu", dropout_structure=(0, 0.3, 0))
    optimizer = getattr(torch.optim, name)(net.parameters(), lr=1e-3, **OPTIMIZERS[name])
    for _ in range(2):
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
    return net, optimizer


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_the_web_uis_files_are_read_as_it_reads_them(path):
    pt, loaded = path.with_suffix(""), FORWARD[path.name.removesuffix(".pt.optim")]["loaded"]
    found = sidecar.read(path)
    matches = found.file_hash == sidecar.short_hash(pt)
    assert matches == loaded["optimizer_state_loaded"]
    if matches:
        assert found.optimizer_name == loaded["optimizer_name"]
    net = hn.load(pt)
    groups = found.state["param_groups"]
    assert groups[0]["params"] == list(range(len(list(net.parameters()))))
    for number, values in found.state["state"].items():
        parameter = list(net.parameters())[number]
        tensors = [v for v in values.values() if isinstance(v, torch.Tensor) and v.dim()]
        assert all(tensor.shape == parameter.shape for tensor in tensors)


def web_ui_accepts(path) -> dict:
    """By its published rules, read off the bytes; returns what it would give to the optimizer."""
    beside = path.with_name(path.name + ".optim")
    with zipfile.ZipFile(io.BytesIO(beside.read_bytes())) as archive:
        names = archive.namelist()
        assert all(re.fullmatch(r"[^/]+/(data\.pkl|version|data/\d+)", name) for name in names)
    assert container.examine(beside).names <= ALLOWED
    stored = torch.load(beside, weights_only=True)
    assert list(stored) == ["optimizer_name", "hash", "optimizer_state_dict"]
    assert stored["hash"] == hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    assert stored["optimizer_name"] in vars(torch.optim)
    return stored


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_we_write_is_accepted_by_the_web_ui(name, tmp_path):
    net, optimizer = trained(name)
    artifacts.write(net, tmp_path / "net", name, optimizer.state_dict())
    stored = web_ui_accepts(tmp_path / "net.pt")
    fresh = getattr(torch.optim, stored["optimizer_name"])(
        hn.load(tmp_path / "net.pt").parameters()
    )
    fresh.load_state_dict(stored["optimizer_state_dict"])
    for number, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(fresh.state_dict()["state"][number][key]), value)


def test_no_name_no_sidecar(tmp_path):
    net, optimizer = trained()
    artifacts.write(net, tmp_path / "net", None, optimizer.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt", "net.safetensors"]


def test_the_same_state_gives_the_same_bytes_and_comes_back(tmp_path):
    _, optimizer = trained()
    state = Sidecar(optimizer_name="AdamW", file_hash="0123456789", state=optimizer.state_dict())
    (tmp_path / "x.optim").write_bytes(sidecar.to_bytes(state))
    read = sidecar.read(tmp_path / "x.optim")
    assert sidecar.to_bytes(read) == sidecar.to_bytes(state)
    assert (read.optimizer_name, read.file_hash) == ("AdamW", "0123456789")


def _state(**changes):
    whole = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}
    return {"optimizer_name": "AdamW", "hash": "x", "optimizer_state_dict": {**whole, **changes}}


WRONG = {
    "a list": [1],
    "nothing": {},
    "no state": {"optimizer_state_dict": None},
    "no groups": _state(param_groups=None),
    "groups of numbers": _state(param_groups=[1]),
    "a group without parameters": _state(param_groups=[{}]),
    "values that are a list": _state(state={0: [1]}),
    "a tensor that lies": _state(state={0: {"exp_avg": torch.zeros(1).expand(9)}}),
    "not a number": _state(state={0: {"exp_avg": torch.tensor([float("nan")])}}),
    "text": _state(state={0: {"exp_avg": "x"}}),
    "a network": {16: ({}, {}), "step": 3},
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_optimizer_state_is_refused(case, tmp_path):
    path = tmp_path / "net.pt.optim"
    path.write_bytes(container.write(WRONG[case]))
    with pytest.raises(ModelError, match=r"net\.pt\.optim"):
        sidecar.read(path)
