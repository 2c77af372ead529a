"""Files and numbers of the web UI, held against what it computed itself."""

import pytest
import torch
from torch import Tensor, nn

import hn
from hn.network.module import Hypernetwork
from tests import golden

FORWARD = golden.read_json("forward.json")
STACKS = FORWARD.pop("__stacks__")
TENSORS = golden.read_tensors("forward.safetensors")
NOT_STORED = "real-768-320"  # large, and its weights follow from its seed
RAW = [name for name, entry in FORWARD.items() if entry["raw_initialisation"]]
STORED = [name for name in FORWARD if name != NOT_STORED]


def path_of(name):
    return golden.FOLDER / "files" / f"{name}.pt"


def create(name) -> Hypernetwork:
    loaded = FORWARD[name]["loaded"]
    return Hypernetwork.create(
        loaded["sizes"],
        layer_structure=loaded["layer_structure"],
        activation_func=loaded["activation_func"],
        weight_initialization=loaded["weight_init"],
        is_layer_norm=loaded["add_layer_norm"],
        activate_output=loaded["activate_output"],
        dropout_structure=loaded["dropout_structure"],
        seed=FORWARD[name]["seed"],
    )


def load(name) -> Hypernetwork:
    return create(name) if name == NOT_STORED else hn.load(path_of(name))


def assert_within(actual: Tensor, expected: Tensor, relative: float = 2e-6):
    assert actual.shape == expected.shape
    difference = (actual - expected).abs().max() / expected.abs().max()
    assert difference <= relative, f"differs by {difference:.1e} of the size"


@pytest.mark.parametrize("name", STORED)
def test_every_attribute_is_read_as_the_web_ui_reads_it(name):
    net, loaded = hn.load(path_of(name)), FORWARD[name]["loaded"]
    config, provenance = net.config, net.provenance
    found = {
        "sizes": list(config.dims),
        "layer_structure": list(config.layer_structure),
        "activation_func": config.activation_func,
        "weight_init": config.weight_initialization,
        "add_layer_norm": config.is_layer_norm,
        "use_dropout": config.use_dropout,
        "dropout_structure": list(config.dropout_structure),
        "activate_output": config.activate_output,
        "last_layer_dropout": config.last_layer_dropout,
        "step": provenance.step,
        "name": provenance.name,
        "sd_checkpoint": provenance.sd_checkpoint,
        "sd_checkpoint_name": provenance.sd_checkpoint_name,
        "optional_info": provenance.optional_info,
    }
    assert found == {key: loaded[key] for key in found}


@pytest.mark.parametrize("name", STORED)
def test_a_loaded_file_is_float32_on_the_cpu_in_evaluation_mode(name):
    net = hn.load(path_of(name))
    assert {(t.dtype, t.device.type) for t in net.tensors().values()} == {(torch.float32, "cpu")}
    assert not net.training


@pytest.mark.parametrize("name", FORWARD)
def test_tensor_names_count_every_layer(name):
    prefix = f"{FORWARD[name]['modules_are_for_size']}.k."
    names = [k.removeprefix(prefix) for k in load(name).tensors() if k.startswith(prefix)]
    assert sorted(names) == sorted(FORWARD[name]["state_dict_keys"])


@pytest.mark.parametrize("name", FORWARD)
@torch.no_grad()
def test_outputs_are_those_of_the_web_ui(name):
    net = load(name)
    for dim in net.dims:
        x = TENSORS[f"{name}/{dim}/x"]
        assert all(torch.equal(out, x) for out in net(x, x, 0.0))
        for strength in (0.5, 1.0):
            k, v = net(x, x, strength)
            assert_within(k, TENSORS[f"{name}/{dim}/k/{strength}"])
            assert_within(v, TENSORS[f"{name}/{dim}/v/{strength}"])


@pytest.mark.parametrize("kind", "kv")
@torch.no_grad()
def test_a_module_at_strength_zero_is_the_identity(kind):
    net = load("old-base-relu")
    x = TENSORS["old-base-relu/16/x"]
    assert torch.equal(net.pairs["16"][kind](x, 0.0), x)


@pytest.mark.parametrize("name", STORED)
@torch.no_grad()
def test_training_mode_ignores_the_strength(name):
    net = load(name).train()
    keys = [key for key in TENSORS if key.startswith(f"{name}/") and "/train_k/" in key]
    layers = {type(layer) for layer in net.modules()}
    assert bool(keys) != bool(layers & {nn.Dropout, nn.RReLU})  # those draw at random
    for key in keys:
        dim = key.split("/")[1]
        x = TENSORS[f"{name}/{dim}/x"]
        assert_within(net(x, x, 0.5)[0], TENSORS[key])


@pytest.mark.parametrize("case", STACKS, ids=lambda case: f"{case['first']}+{case['second']}")
@torch.no_grad()
def test_stacks_apply_in_order(case):
    names = (case["first"], case["second"])
    stack = list(zip(map(load, names), case["strengths"], strict=True))
    for size in case["sizes"]:
        prefix = f"stack/{'+'.join(names)}/{size['size']}"
        k, v = hn.transform_context(TENSORS[f"{prefix}/x"], stack)
        assert_within(k, TENSORS[f"{prefix}/k"])
        assert_within(v, TENSORS[f"{prefix}/v"])


@pytest.mark.parametrize("name", [name for name in RAW if name != NOT_STORED])
def test_a_seed_gives_the_web_uis_initial_weights_exactly(name):
    stored, created = hn.load(path_of(name)).tensors(), create(name).tensors()
    assert stored.keys() == created.keys()
    assert all(torch.equal(tensor, stored[key]) for key, tensor in created.items())
