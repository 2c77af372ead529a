"""One side, some blocks, modules of their own: in our files, and in the form of other hosts."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import hn
from hn.errors import ModelError
from hn.network import activations, container, files, portability, sharing
from hn.network.contents import Contents
from hn.network.description import HypernetworkConfig
from hn.network.module import Hypernetwork
from tests.network import comfyui_reference

DIMS = (16, 8)
X = {dim: torch.randn(2, 5, dim, generator=torch.Generator().manual_seed(dim)) for dim in DIMS}
OWN = {"blocks": ("down.1", "mid"), "block_dims": ((16, 8), (8,))}
REACHES = {
    "k": {"sides": "k"},
    "v": {"sides": "v"},
    "blocks": {"blocks": ("down.1", "up.0.1")},
    "k of blocks": {"sides": "k", "blocks": ("mid",)},
    "per block": OWN,
    "per block, v, all of it": {**OWN, "sides": "v", "complete": True},
}


def make(seed=0, **changes) -> Hypernetwork:
    settings = {"activation_func": "mish", "weight_initialization": "XavierNormal"}
    return Hypernetwork.drawn(HypernetworkConfig(dims=DIMS, **settings | changes), seed, "net")


def equal_in_blocks(**changes) -> Hypernetwork:
    """Modules of single blocks that hold the same."""
    net = make(**OWN, complete=True, **changes)
    first = net.pairs["down_1"]["8"].state_dict()
    net.pairs["mid"]["8"].load_state_dict(first)
    return net


@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_our_file_holds_exactly_what_there_is(tmp_path, reach):
    net = make(**reach)
    hn.save(net, tmp_path / "net.safetensors")
    read = hn.load(tmp_path / "net.safetensors")
    assert read.config == net.config
    assert list(read.tensors()) == list(net.tensors())
    assert all(torch.equal(t, net.tensors()[key]) for key, t in read.tensors().items())
    sides = {name.split(".")[-4] for name in net.tensors()}
    assert sides == {"both": {"k", "v"}}.get(net.config.sides, {net.config.sides})


def test_what_is_everywhere_is_described_as_it_always_was(tmp_path):
    hn.save(make(), tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", framework="pt") as file:
        described = json.loads(file.metadata()["hypernetwork"])
    assert described["format_version"] == 1
    assert not described["config"].keys() & REACHES["per block, v, all of it"].keys()


@pytest.mark.parametrize("side", "kv")
def test_a_missing_side_adds_nothing_in_every_host(tmp_path, side):
    net = make(sides=side)
    hn.save(net, tmp_path / "net.pt")
    read, state = hn.load(tmp_path / "net.pt"), container.read(tmp_path / "net.pt")
    other = "v" if side == "k" else "k"
    for dim, x in X.items():
        found = dict(zip("kv", read(x, x), strict=True))
        assert torch.equal(found[side], net.module(dim, side)(x))
        assert torch.equal(found[other], x)
        elsewhere = dict(zip("kv", comfyui_reference.run(state, x), strict=True))
        assert torch.equal(elsewhere[other], x)
        assert torch.equal(elsewhere[side], found[side])


@pytest.mark.parametrize("name", activations.NAMES)
@pytest.mark.parametrize("layers", [{}, {"is_layer_norm": True}, {"activate_output": True}])
def test_a_side_is_left_out_exactly_or_not_at_all(name, layers):
    """Only an activated output that is not zero at zero is in the way."""
    try:
        contents = Contents.of(make(sides="k", activation_func=name, **layers))
    except ModelError:
        pytest.skip("it cannot be built")
    reason = sharing.obstacle(contents)
    if reason is None:
        written = sharing.by_width(contents).build()
        assert all(torch.equal(written(x, x)[1], x) for x in X.values())
    else:
        assert layers == {"activate_output": True}
        assert "it is for k only" in reason


def test_equal_modules_of_all_blocks_are_one(tmp_path):
    net = equal_in_blocks()
    hn.save(net, tmp_path / "net.pt")
    read = hn.load(tmp_path / "net.pt")
    assert read.config == replace(make().config, blocks=(), block_dims=())
    for block, dims in zip(*OWN.values(), strict=True):
        for dim in dims:
            own = net.at(f"{block}.0")(X[dim], X[dim])
            assert all(map(torch.equal, read(X[dim], X[dim]), own))


REFUSED = {
    "other modules": (make(**OWN, complete=True), "width 8 differ between down.1 and mid"),
    "others read": (
        replace(equal_in_blocks().config, complete=False),
        "only down.1, mid read through it",
    ),
    "blocks": (make(blocks=("up.1",)), "only up.1 read through it"),
    "no zero": (
        make(sides="v", activation_func="sigmoid", activate_output=True),
        "no module adds nothing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_others_cannot_say_is_refused_with_the_reason(tmp_path, case):
    given, reason = REFUSED[case]
    net = given if isinstance(given, Hypernetwork) else Hypernetwork.drawn(given, 0)
    with pytest.raises(ModelError, match=f"cannot be written for other hosts: .*{reason}"):
        hn.save(net, tmp_path / "net.pt")
    assert not (tmp_path / "net.pt").exists()
    hn.save(net, tmp_path / "net.safetensors")
    path = tmp_path / "net.safetensors"
    found = {it.host: it for it in portability.judge(files.read(path), path)}
    for host in ("A1111", "ComfyUI"):
        assert found[host].outcome == portability.Outcome.REFUSED
        assert reason in found[host].findings[0].reason
    assert found["diffusers"].outcome == portability.Outcome.SAME


def test_the_verdict_on_a_side_is_that_of_its_pt():
    for contents in map(Contents.of, (make(sides="k"), make(sides="k", activation_func="gelu"))):
        expected = portability.judge(sharing.by_width(contents))
        assert portability.judge(contents) == expected


HOSTILE = {
    "side": {"sides": "q"},
    "sides": {"sides": ["k"]},
    "no block": {"blocks": ["down_blocks.1"]},
    "block": {"blocks": "mid"},
    "many": {"blocks": [f"down.{i}" for i in range(300)]},
    "twice": {"blocks": ["mid", "mid"]},
    "within": {"blocks": ["down", "down.1"]},
    "dims": {"blocks": ["mid"], "block_dims": [[16]]},
    "too few": {"blocks": ["mid", "up"], "block_dims": [[16, 8]]},
    "alone": {"block_dims": [[16, 8]]},
    "odd": {"blocks": ["mid"], "block_dims": [[16, 8, {}]]},
    "text": {"blocks": ["mid"], "block_dims": ["16"]},
    "complete": {"complete": 1},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_an_odd_description_is_refused(tmp_path, changes):
    path = tmp_path / "net.safetensors"
    contents = Contents.of(make())
    described = {"config": contents.config.as_dict() | changes, "provenance": {}}
    described["format_version"] = 2
    save_file(contents.packed(), path, {"hypernetwork": json.dumps(described)})
    with pytest.raises(ModelError, match=r"net\.safetensors: "):
        hn.load(path)


def test_modules_of_single_blocks_are_not_called_as_one():
    net = make(**OWN)
    with pytest.raises(ModelError, match=r"net has modules of its own for each of down\.1, mid"):
        net(X[8], X[8])
    assert net.at("up.0.0") is None
    assert net.at("down.1.0") is net.pairs["down_1"]
