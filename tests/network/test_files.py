"""Our two file formats: what is written, what is read back, what is refused."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import hn
from hn.errors import ModelError
from hn.network import a1111, container, native
from hn.network.contents import Contents
from hn.network.module import Hypernetwork
from tests import golden

# The same functions by the names that ComfyUI knows.
PORTABLE = {None: "linear", "hardswish": "swish"}
STORED = sorted((golden.FOLDER / "files").glob("*.pt"))
KEYS = [
    "step",
    "name",
    "layer_structure",
    "activation_func",
    "is_layer_norm",
    "weight_initialization",
    "sd_checkpoint",
    "sd_checkpoint_name",
    "activate_output",
    "use_dropout",
    "dropout_structure",
    "last_layer_dropout",
    "optional_info",
]


def make_net(**changes) -> Hypernetwork:
    settings = {"activation_func": "relu", "weight_initialization": "Normal", "seed": 0}
    return Hypernetwork.create((16, 8), **{**settings, **changes})


class WebUiUnpickler(pickle.Unpickler):
    """Reads what the web UI's safety check lets through, and raises for anything else."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.storages = {
            Path(name).name: archive.read(name) for name in archive.namelist() if "/data/" in name
        }

    def find_class(self, module, name):
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self.rebuild,
            ("torch", "FloatStorage"): torch.float32,
        }
        return allowed[module, name]

    def persistent_load(self, saved_id):
        kind, dtype, key, device, _ = saved_id
        assert (kind, dtype, device) == ("storage", torch.float32, "cpu")
        return torch.frombuffer(bytearray(self.storages[key]), dtype=dtype)

    @staticmethod
    def rebuild(storage, offset, size, stride, *_):
        return storage.as_strided(size, stride, offset)


def web_ui_load(path):
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        return WebUiUnpickler(archive, root).load()


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("source", STORED, ids=lambda path: path.stem)
def test_saving_and_loading_gives_the_same_network(source, ending, tmp_path):
    net, path = hn.load(source), tmp_path / f"copy{ending}"
    hn.save(net, path)
    read = hn.load(path)
    assert list(read.tensors()) == list(net.tensors())
    assert all(torch.equal(t, net.tensors()[key]) for key, t in read.tensors().items())
    net.describe(name="copy")
    assert read.provenance == net.provenance
    expected = dict(vars(net.config))
    if ending == ".pt":
        expected["activation_func"] = PORTABLE.get(name := net.config.activation_func, name)
    assert vars(read.config) == expected


@pytest.mark.parametrize("source", STORED, ids=lambda path: path.stem)
def test_the_web_uis_safety_check_passes_what_we_write(source, tmp_path):
    net, path = hn.load(source), tmp_path / "copy.pt"
    hn.save(net, path)
    state = web_ui_load(path)
    for dim in net.dims:
        for kind, weights in zip("kv", state[dim], strict=True):
            for key, tensor in weights.items():
                assert torch.equal(tensor, net.tensors()[f"{dim}.{kind}.{key}"])


def test_a_pt_holds_three_kinds_of_records(tmp_path):
    hn.save(make_net(), tmp_path / "net.pt")
    names = zipfile.ZipFile(tmp_path / "net.pt").namelist()
    records = {name.split("/", 1)[1] for name in names}
    assert records == {"data.pkl", "version", *(f"data/{i}" for i in range(16))}


def test_a_pt_has_the_web_uis_keys_in_its_order_as_plain_types(tmp_path):
    net = make_net(dropout_structure=(0, 0.3, 0))
    net.describe(step=7, sd_checkpoint="0123456789", sd_checkpoint_name="sd")
    hn.save(net, tmp_path / "net.pt")
    state = web_ui_load(tmp_path / "net.pt")
    assert list(state) == [16, 8, *KEYS]
    assert [type(state[dim]) for dim in (16, 8)] == [tuple, tuple]
    assert {key: state[key] for key in KEYS} == {
        "step": 7,
        "name": "net",
        "layer_structure": [1, 2, 1],
        "activation_func": "relu",
        "is_layer_norm": False,
        "weight_initialization": "Normal",
        "sd_checkpoint": "0123456789",
        "sd_checkpoint_name": "sd",
        "activate_output": False,
        "use_dropout": True,
        "dropout_structure": [0, 0.3, 0],
        "last_layer_dropout": True,
        "optional_info": None,
    }


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_equal_networks_give_equal_bytes(ending, tmp_path):
    first, second = tmp_path / f"a/net{ending}", tmp_path / f"b/net{ending}"
    hn.save(make_net(), first)
    hn.save(make_net(), second)
    assert first.read_bytes() == second.read_bytes()
    hn.save(make_net(seed=1), second)
    assert first.read_bytes() != second.read_bytes()


def test_torchs_flat_form_is_read(tmp_path):
    state = torch.load(STORED[0], weights_only=True)
    torch.save(state, tmp_path / "flat.pt", _use_new_zipfile_serialization=False)
    read = hn.load(tmp_path / "flat.pt").tensors()
    assert all(torch.equal(t, read[key]) for key, t in hn.load(STORED[0]).tensors().items())


def test_a_file_is_known_by_its_content_not_its_name(tmp_path):
    hn.save(make_net(), tmp_path / "net.safetensors")
    (tmp_path / "net.safetensors").rename(tmp_path / "net.pt")
    assert hn.load(tmp_path / "net.pt").dims == (16, 8)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_what_could_steer_a_terminal_is_made_visible_and_lines_are_kept(ending, tmp_path):
    net = make_net()
    net.describe(sd_checkpoint_name="a\x1b[2J\u202e\ud800\n", optional_info="one\ntwo\tüber\x9b")
    hn.save(net, tmp_path / f"net{ending}")
    provenance = hn.load(tmp_path / f"net{ending}").provenance
    assert provenance.sd_checkpoint_name == "a?[2J???"
    assert provenance.optional_info == "one\ntwo\tüber?"


@pytest.mark.parametrize("ending", [".ckpt", "", ".PT"])
def test_an_unknown_ending_is_refused(ending, tmp_path):
    with pytest.raises(ModelError, match=r"allowed are \.pt, \.safetensors"):
        hn.save(make_net(), tmp_path / f"net{ending}")
    assert not list(tmp_path.iterdir())


def _deflated(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def _with_record(name: str):
    def add(data: bytes) -> bytes:
        buffer = io.BytesIO(data)
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(name, b"x")
        return buffer.getvalue()

    return add


DAMAGED = {
    "cut-short": (lambda data: data[: len(data) // 2], "damaged or cut short"),
    "last-byte-missing": (lambda data: data[:-1], "damaged or cut short"),
    "changed-byte": (lambda data: data.replace(b"linear.0", b"linear.9", 1), "damaged"),
    "empty": (lambda _: b"", "it is empty"),
    "web-page": (lambda _: b"\n<!DOCTYPE html><html>404</html>", "it is a web page"),
    "git-lfs": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    "json": (lambda _: b'{"error": "gone"}', "it is JSON text"),
    "noise": (lambda _: bytes(range(100, 200)), "nothing in it is known"),
    "deflated": (_deflated, "is compressed"),
    "foreign-zip": (lambda _: _deflated(_zip({"a/readme.md": b""})), "holds the record"),
    "no-record": (lambda _: _zip({}), "has no data.pkl"),
    "two-folders": (_with_record("other/data.pkl"), "several folders"),
    "name-with-a-line-break": (_with_record("archive/data.pkl\n"), "holds the record"),
    "no-pickle": (lambda _: _zip({"a/version": b"3"}), "has no data.pkl"),
    "climbing-record": (_with_record("../evil.py"), "holds the record"),
    "huge-pickle": (lambda _: container.write({"x": "a" * 5_000_000}), "structure takes"),
    "other-content": (lambda _: container.write({"state_dict": {}}), "no key is a context width"),
    "a-list": (lambda _: container.write([1, 2]), "holds a list"),
}


def _zip(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_no_hypernetwork_is_refused_with_the_reason(damage, tmp_path):
    change, reason = DAMAGED[damage]
    path = tmp_path / "net.pt"
    hn.save(make_net(), path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelError, match=reason) as caught:
        hn.load(path)
    assert str(path) in str(caught.value)


def test_a_record_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "net.pt"
    hn.save(make_net(), path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"x")
    with pytest.raises(ModelError, match="holds the record"):
        hn.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(ModelError, match="cannot read"):
            hn.load(path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "net.pt")
    with pytest.raises(ModelError, match="it is not a file"):
        hn.load(tmp_path / "net.pt")


def test_numbers_in_the_other_byte_order_are_read(tmp_path):
    """As torch writes them on a big-endian machine."""
    net, path = make_net(), tmp_path / "net.pt"
    torch.save(a1111.to_dict(Contents.of(net), "net"), path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    turned = {
        name: b"big"
        if name.endswith("/byteorder")
        else np.frombuffer(data, ">f4").astype("<f4").tobytes()
        if "/data/" in name
        else data
        for name, data in records.items()
    }
    path.write_bytes(_zip(turned))
    read = hn.load(path).tensors()
    assert all(torch.equal(tensor, read[key]) for key, tensor in net.tensors().items())


def test_a_large_strangers_file_is_refused_by_its_header(tmp_path, monkeypatch):
    """A base model given by mistake is not read into memory first."""
    save_file({"model.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(native, "safe_open", HeaderOnly)
    with pytest.raises(ModelError, match=r"no hypernetwork of ours.*model\.weight"):
        hn.load(tmp_path / "model.safetensors")


def test_a_safetensors_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    hn.save(make_net(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match="Download or export it again"):
        hn.load(path)


def test_a_strangers_safetensors_file_is_refused(tmp_path):
    save_file({"lora.up": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match=r"no hypernetwork of ours.*lora\.up"):
        hn.load(tmp_path / "lora.safetensors")


class HeaderOnly:
    """A file whose tensors cannot be had."""

    def __init__(self, path, framework):
        self._file = safe_open(path, framework=framework)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def metadata(self):
        return self._file.metadata()

    def keys(self):
        return self._file.keys()


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def _evil_zip(obj):
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def _evil_flat(obj):
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("write", [_evil_zip, _evil_flat, container.write, pickle.dumps])
def test_a_file_cannot_run_code(write, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "net.pt"
    data = write({16: Evil(canary)})
    path.write_bytes(data)
    with pytest.raises(ModelError):
        hn.load(path)
    assert not canary.exists()


def test_the_evil_file_would_have_run_code(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
