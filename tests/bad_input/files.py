"""Rows 46 to 58: hypernetwork files to go on from."""

import io
import os
import pickle
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hn.network import a1111, container, native, sidecar
from hn.network.contents import Contents
from hn.network.module import Hypernetwork
from hn.network.sidecar import Sidecar
from tests.bad_input.pictures import PNG, flipped
from tests.bad_input.row import Row, Scene, assert_stopped

NET = Hypernetwork.create((16, 24), activation_func="relu", seed=0)
ASK = "ask for a .safetensors file"
AGAIN = "Download or export it again"


class Evil:
    """What makes a folder where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def stored(**changes: Any) -> dict[Any, Any]:
    """What a `.pt` holds, with other values."""
    return a1111.to_dict(Contents.of(NET), "net") | changes


def with_tensor(tensor: Any, name: str = "linear.0.weight") -> dict[Any, Any]:
    """The same with another tensor in the place of one."""
    state = stored()
    state[16][0][name] = tensor
    return state


def saved(obj: Any, **settings: Any) -> bytes:
    """As torch writes it."""
    buffer = io.BytesIO()
    torch.save(obj, buffer, **settings)
    return buffer.getvalue()


def flat(obj: Any) -> bytes:
    """In torch's older form."""
    return saved(obj, _use_new_zipfile_serialization=False)


def taped(obj: Any) -> bytes:
    """In torch's oldest form."""
    buffer, pickled = io.BytesIO(), pickle.dumps(obj)
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = len(pickled)
        archive.addfile(info, io.BytesIO(pickled))
    return buffer.getvalue()


def deflated(data: bytes, double: bool = False) -> bytes:
    """Its records compressed, or one of them twice."""
    buffer = io.BytesIO()
    kind = zipfile.ZIP_STORED if double else zipfile.ZIP_DEFLATED
    with (
        warnings.catch_warnings(action="ignore"),
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", kind) as new,
    ):
        for name in [*old.namelist(), *old.namelist()[: int(double)]]:
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def nested(depth: int) -> Any:
    """2^depth numbers in a few bytes."""
    return [0] if depth == 0 else [nested_once := nested(depth - 1), nested_once]


PT = container.write(stored())
Files = dict[str, tuple[bytes, list[str]]]


def refused(number: int, title: str, make: Callable[[], Files], seconds: float = 5) -> Row:
    """A row of files that are refused within so many seconds, each with its words."""

    def check(scene: Scene) -> None:
        canary = scene.path / "canary"
        for name, (data, words) in make().items():
            path = scene.path / name
            path.write_bytes(data)
            began = time.process_time()
            said = scene.run(hypernetwork_path=path)
            assert time.process_time() - began < seconds
            assert_stopped(said, 4, [str(path), *words])
            assert len(said.err) < 4000
        assert not canary.exists()

    return Row(number, title, check)


def malicious(scene: Scene) -> None:
    canary = scene.path / "canary"
    evil = {16: Evil(canary)}
    forms = {
        "zip.pt": (saved(evil), ["posix.mkdir", ASK]),
        "flat.pt": (flat(evil), ["posix.mkdir", ASK]),
        "first.pt": (saved(Evil(canary)), ["posix.mkdir", ASK]),
        "bare.pt": (pickle.dumps(evil), ["a pickle that torch did not write", AGAIN]),
        "tape.pt": (taped(evil), ["a tar archive, torch's oldest form", AGAIN]),
    }
    for name, (data, words) in forms.items():
        (scene.path / name).write_bytes(data)
        assert_stopped(scene.run(hypernetwork_path=scene.path / name), 4, [name, *words])
        assert not canary.exists()


def by_content(scene: Scene) -> None:
    names = {"a.pt": native.to_bytes(Contents.of(NET), "a"), "b.safetensors": PT}
    for name, data in names.items():
        (scene.path / name).write_bytes(data)
        said = scene.run(scene.model, name=name[0], hypernetwork_path=scene.path / name)
        assert said.code == 0, said.err
        words = f"of another kind than its ending says, read all the same: 1 ('{name}')"
        assert words in said.out
        status = (scene.path / f"out/{name[0]}/status.json").read_text()
        assert "hypernetwork_path" in status
        assert name in status


def hash_is_shown(scene: Scene) -> None:
    path = scene.path / "net.safetensors"
    data = native.to_bytes(Contents.of(NET), "net")
    for content in (data, flipped(data, len(data) - 1)):
        path.write_bytes(content)
        said = scene.run(hypernetwork_path=path, dry_run=True)
        if said.code == 0:
            assert f"sha256 {sidecar.short_hash(path)}" in said.out
        else:
            assert_stopped(said, 4, ["NaN or infinity"])


def structures() -> Files:
    other = container.write(a1111.to_dict(Contents.of(Hypernetwork.create((768,), seed=0)), "x"))
    lacking = stored()
    del lacking[16][0]["linear.0.weight"]
    return {
        "wide.pt": (other, ["dims [768] of ", "it has the widths (16, 24, 32)", " out, or take"]),
        "swoosh.pt": (container.write(stored(activation_func="swoosh")), ["swoosh", "relu"]),
        "odd.pt": (
            container.write(stored(layer_structure=[1, 2])),
            ["layer_structure must start and end with 1", "such as (1, 2, 1)"],
        ),
        "none.pt": (container.write({"name": "x"}), ["no key is a context width such as 768"]),
        "lacking.pt": (container.write(lacking), ["16.k.linear.0.weight is missing"]),
    }


def odd_names(scene: Scene) -> None:
    path, evil = scene.path / "net.pt", "../../evil\x1b[2J\0" + "x" * 100_000
    path.write_bytes(container.write(stored(name=evil, sd_checkpoint_name=evil)))
    said = scene.run(hypernetwork_path=path, dry_run=True)
    assert said.code == 0, said.err
    assert "\x1b" not in said.out + said.err
    assert len(said.out) < 5000
    path.write_bytes(container.write(with_tensor(torch.zeros(2), evil)))
    said = scene.run(hypernetwork_path=path)
    assert_stopped(said, 4, ["../../evil\\x1b", "is not part of this structure"])
    assert len(said.err) < 2000
    assert not [*scene.path.parent.glob("evil*"), *scene.path.parent.parent.glob("evil*")]


def another_sidecar(scene: Scene) -> None:
    path = scene.path / "net.pt"
    path.write_bytes(PT)
    optimizer = torch.optim.AdamW(NET.parameters())
    state = Sidecar(optimizer_name="AdamW", file_hash="0123456789", state=optimizer.state_dict())
    sidecar.beside(path).write_bytes(sidecar.to_bytes(state))
    said = scene.run(hypernetwork_path=path)
    words = ["net.pt.optim was written for another file", "0123456789", "adopt_optimizer"]
    assert_stopped(said, 2, words)


ROWS = [
    refused(
        46,
        "empty, one byte, cut short",
        lambda: {
            "empty.pt": (b"", ["it is empty", AGAIN]),
            "byte.pt": (b"P", ["not a .pt file", AGAIN]),
            "half.pt": (PT[: len(PT) // 2], ["damaged or cut short", AGAIN]),
            "half.safetensors": (native.to_bytes(Contents.of(NET), "x")[:-9], [AGAIN]),
        },
    ),
    refused(
        47,
        "something else",
        lambda: {
            "page.pt": (b"<!DOCTYPE html>404", ["it is a web page", AGAIN]),
            "json.pt": (b'{"error": 1}', ["it is JSON text", AGAIN]),
            "lfs.pt": (b"version https://git-lfs.github.com/spec/v1\n", ["a git-lfs pointer"]),
            "picture.pt": (PNG, ["it is a picture", AGAIN]),
        },
    ),
    Row(48, "files named as the other kind", by_content),
    Row(49, "files that run code", malicious),
    refused(
        50,
        "archives that swell",
        lambda: {
            "deflated.pt": (deflated(PT), ["is compressed, as torch never does"]),
            "bomb.pt": (deflated(saved({16: torch.zeros(2**22)})), ["is compressed"]),
            "large.pt": (container.write({"x": "a" * 5_000_000}), ["its structure takes 5"]),
            "twice.pt": (deflated(PT, double=True), ["holds the record"]),
        },
    ),
    refused(
        51,
        "tensors that lie, values without end",
        lambda: {
            "stride.pt": (
                saved(with_tensor(torch.zeros(1).expand(32, 16))),
                ["claims 512"],
            ),
            "sparse.pt": (saved(with_tensor(torch.zeros(32, 16).to_sparse())), ["no plain tensor"]),
            "deep.pt": (container.write(stored(layer_structure=nested(60))), ["layer_structure"]),
        },
    ),
    refused(
        52,
        "a flipped byte",
        lambda: {"bit.pt": (flipped(PT, PT.index(b"archive/data/0") + 400), ["data/0", AGAIN])},
    ),
    Row(53, "a flipped byte where there is no checksum", hash_is_shown),
    refused(
        54,
        "weights that are not finite",
        lambda: {
            "nan.pt": (saved(with_tensor(torch.full((32, 16), torch.nan))), ["NaN or infinity"]),
            "inf.pt": (saved(with_tensor(torch.full((32, 16), torch.inf))), ["NaN or infinity"]),
        },
    ),
    refused(55, "structures that do not fit", structures),
    refused(
        56,
        "honest files of another form",
        lambda: {
            "new.pt": (saved(stored(), pickle_protocol=4), [ASK, "torch.save(state, file)"]),
            "numpy.pt": (saved(stored(step=np.int64(7))), ["scalar", "torch.save(state, file)"]),
        },
    ),
    Row(57, "names that are paths, or have no end", odd_names),
    Row(58, "the optimizer's state of another file", another_sidecar),
]
