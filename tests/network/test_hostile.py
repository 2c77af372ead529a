"""Files whose tensors lie, whose values are odd, whose bytes are changed: refused in one way."""

import io
import json
import random
import zipfile

import pytest
import torch
from safetensors.torch import save

import hn
from hn.errors import ModelError
from hn.network import a1111, container, files, native, portability, sidecar
from hn.network.contents import Contents
from hn.network.module import Hypernetwork
from hn.network.sidecar import Sidecar

NET = Hypernetwork.create((8, 16), activation_func="relu", seed=0)


def stored() -> dict:
    return a1111.to_dict(Contents.of(NET), "net")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(16, 8), "claims 128 numbers, more than the file holds"),
        (torch.full((16, 8), float("nan")), "holds NaN or infinity"),
        (torch.full((16, 8), 1e300, dtype=torch.float64), "do not fit into torch.float32"),
        (torch.zeros(16, 8, dtype=torch.int64), "no plain tensor of numbers"),
        (torch.zeros(16, 8).to_sparse(), "no plain tensor of numbers"),
        (torch.zeros(16, 8, dtype=torch.complex64), "no plain tensor of numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_hostile_or_spoilt_tensors_are_refused(tmp_path, tensor, message):
    state = stored()
    state[8][0]["linear.0.weight"] = tensor
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=message):
        hn.load(tmp_path / "net.pt")


pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element")


def _nested(depth: int) -> list:
    """A list that says 2^depth things in a few bytes."""
    node = [0, 0]
    for _ in range(depth):
        node = [node, node]
    return node


TERMINAL = "a\x1b[2J\n\u202e\ud800"
ODD = {
    **{repr(v): v for v in (None, True, 0, -1, 2**70, 1.5, float("nan"), float("inf"), "", "1")},
    **{repr(v): v for v in (b"x", 1j, [], (), {}, [1], [1, 2, 1], (True, 2, 1.0), [[1, 2, 1]])},
    **{repr(v): v for v in ([1, "2", 1], [1, None, 1], [1, -1, 1], [1, 1e30, 1], [1, 0.01, 1])},
    **{repr(v): v for v in ([1, float("nan"), 1], [1, float("inf"), 1], [0, 2, 0], [0, "a", 0])},
    "plain": "relu",
    "too large to print": 10**5000,
    "too long": "x" * 100_000,
    "too many": [1] * 100_000,
    "steers a terminal": TERMINAL,
    "2^60 entries": _nested(60),
    "tensor": torch.zeros(3),
    "number in a tensor": torch.zeros(()),
}


def _use(path):
    """What users do with a file; returns all that is said about it."""
    contents = files.read(path)
    said = portability.as_lines(portability.in_words(portability.judge(contents, path)))
    contents.build()
    for to_bytes in (a1111.to_bytes, native.to_bytes):
        copy = path.with_name("copy")
        copy.write_bytes(to_bytes(contents, "copy"))
        assert files.read(copy).tensors.keys() == contents.tensors.keys()
    return said


def _uses_or_refuses(path) -> bool:
    """Whether the file can be used; if not, it is our error, short and safe to print."""
    try:
        said = _use(path)
    except ModelError as error:
        said = str(error)
        assert str(path) in said
        used = False
    else:
        used = True
    assert len(said) < 3000
    assert all(c.isprintable() or c == "\n" for c in said)
    return used


@pytest.mark.timeout(20)
@pytest.mark.parametrize("key", [*a1111.named_values(Contents.of(NET), ""), "extra", TERMINAL])
def test_odd_values_are_used_or_refused_and_nothing_else(tmp_path, key):
    used = set()
    for name, value in ODD.items():
        path = tmp_path / "net.pt"
        path.write_bytes(container.write({**stored(), key: value}))
        if _uses_or_refuses(path):
            used.add(name)
    assert used  # every key has some value that is fine


@pytest.mark.parametrize("dim", [0, -1, 2**40, 10**30, 10**5000], ids=hex)
def test_odd_widths_are_refused(tmp_path, dim):
    state = stored()
    state[dim] = state[8]
    (tmp_path / "net.pt").write_bytes(container.write(state))
    assert not _uses_or_refuses(tmp_path / "net.pt")


@pytest.mark.timeout(20)
def test_many_widths_cost_nothing(tmp_path):
    state = stored() | {dim: ({}, {}) for dim in range(100, 50_000)}
    (tmp_path / "net.pt").write_bytes(container.write(state))
    assert not _uses_or_refuses(tmp_path / "net.pt")


@pytest.mark.parametrize(
    "key", [TERMINAL, "x" * 100_000, "../../evil", "", 5, "linear.0.weight\n"], ids=ascii
)
def test_odd_tensor_names_are_refused(tmp_path, key):
    state = stored()
    state[8][0][key] = torch.zeros(2)
    (tmp_path / "net.pt").write_bytes(container.write(state))
    assert not _uses_or_refuses(tmp_path / "net.pt")


@pytest.mark.parametrize("section", ["config", "provenance"])
def test_odd_values_in_a_header_are_used_or_refused_and_nothing_else(tmp_path, section):
    contents = Contents.of(NET)
    header = json.loads(_header(native.to_bytes(contents, "net")))
    plain = [v for v in ODD.values() if isinstance(v, str | bool | float | list | tuple | None)]
    path = tmp_path / "net.safetensors"
    for key in [*header[section], "extra", TERMINAL]:
        for value in [*(v for v in plain if v is not ODD["2^60 entries"]), {}]:
            changed = {**header, section: {**header[section], key: value}}
            _write_header(path, contents, json.dumps(changed))
            _uses_or_refuses(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", "{}", '{"format_version": "x"}', "[" * 100_000]
)
def test_a_header_that_is_not_ours_is_refused(tmp_path, text):
    _write_header(tmp_path / "net.safetensors", Contents.of(NET), text)
    assert not _uses_or_refuses(tmp_path / "net.safetensors")


def test_a_newer_format_is_named(tmp_path):
    path = tmp_path / "net.safetensors"
    _write_header(path, Contents.of(NET), '{"format_version": 3}')
    with pytest.raises(ModelError, match="newer version \\(format 3, this one reads 2"):
        hn.load(path)


def _header(data: bytes) -> str:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size])["__metadata__"][native.HEADER_KEY]


def _write_header(path, contents, text):
    path.write_bytes(save(contents.packed(), metadata={native.HEADER_KEY: text}))


def _flat(obj) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _optimizer_state() -> dict:
    optimizer = torch.optim.AdamW(NET.parameters())
    for parameter in NET.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


SIDECAR = sidecar.to_bytes(
    Sidecar(optimizer_name="AdamW", file_hash="0123456789", state=_optimizer_state())
)


def _changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, mostly in what describes the rest; or the end cut off."""
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(data) if rng.random() < 0.3 else 1500)] = rng.randrange(256)
    return bytes(changed)


def _changed_pickle(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed in the pickle, under a checksum that is right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            whole = not name.endswith("data.pkl")
            new.writestr(name, content if whole else _changed_bytes(content, rng))
    return buffer.getvalue()


@pytest.mark.parametrize("change", [_changed_bytes, _changed_pickle])
@pytest.mark.parametrize("form", ["zip", "flat", "safetensors", "sidecar", "flat sidecar"])
def test_changed_bytes_are_refused_or_read_and_nothing_else(tmp_path, form, change):
    (tmp_path / "whole").write_bytes(SIDECAR)
    data = {
        "zip": container.write(stored()),
        "flat": _flat(stored()),
        "safetensors": native.to_bytes(Contents.of(NET), "net"),
        "sidecar": SIDECAR,
        "flat sidecar": _flat(container.read(tmp_path / "whole")),
    }[form]
    if change is _changed_pickle and data[:2] != b"PK":
        change = _changed_bytes
    rng, path, refused = random.Random(0), tmp_path / "net.pt", 0
    for _ in range(150):
        path.write_bytes(change(data, rng))
        try:
            sidecar.read(path) if "sidecar" in form else files.read(path)
        except ModelError as error:
            refused += 1
            assert all(c.isprintable() for c in str(error))
            assert len(str(error)) < 2000
    assert refused > 75
