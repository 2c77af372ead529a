"""The modules themselves: where they start, what they refuse, which numbers they compute."""

import pytest
import torch
from torch import nn

from hn.errors import ModelError
from hn.network.activations import NAMES
from hn.network.contents import Contents
from hn.network.description import HypernetworkConfig
from hn.network.module import Hypernetwork, transform_context

ACTIVATIONS = ["linear", "relu", "leakyrelu", "swish", "tanh", "sigmoid", "mish", "prelu"]


def make_net(**changes) -> Hypernetwork:
    return Hypernetwork.create(**{"dims": (16, 8), "seed": 0, **changes})


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 0.5, 3, 1)])
@pytest.mark.parametrize("activation", NAMES)
def test_identity_starts_as_exactly_the_identity(activation, structure, layer_norm):
    net = make_net(activation_func=activation, layer_structure=structure, is_layer_norm=layer_norm)
    for mode in (True, False):
        for dim in net.dims:
            x = torch.randn(2, 3, dim)
            assert all(torch.equal(y, x) for y in net.train(mode)(x, x))


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("structure", [(1, 2, 1), (1, 2, 2, 1)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_from_identity_every_parameter_learns_by_the_second_step(activation, structure, layer_norm):
    net = make_net(activation_func=activation, layer_structure=structure, is_layer_norm=layer_norm)
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        for dim in net.dims:
            x = torch.randn(4, 5, dim)
            sum((y.tanh() * x.roll(1, -1)).sum() for y in net(x, x)).backward()
        optimizer.step()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "softplus", "hardshrink"])
def test_identity_refuses_an_output_that_cannot_start_at_zero_or_learn(activation):
    with pytest.raises(ModelError, match=f"activated by {activation}.*activate_output = false"):
        make_net(activation_func=activation, activate_output=True)


@pytest.mark.parametrize("activation", ["tanh", "swish", "silu", "mish", "elu", "linear"])
def test_identity_accepts_an_activated_output_with_a_slope(activation):
    net = make_net(activation_func=activation, activate_output=True)
    x = torch.randn(2, 3, 16)
    assert torch.equal(net(x, x)[0], x)


def test_a_seed_gives_one_network_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (make_net(seed=seed).tensors() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["16.k.linear.0.weight"], other["16.k.linear.0.weight"])


def test_without_a_seed_the_global_generator_is_used():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        drawn = make_net(seed=None).tensors()
    assert all(
        torch.equal(drawn[key], tensor) for key, tensor in make_net(seed=5).tensors().items()
    )


def test_reading_draws_no_random_numbers():
    net = make_net()
    before = torch.get_rng_state()
    Contents.of(net).build()
    assert torch.equal(torch.get_rng_state(), before)


REFUSED = {
    "no-dims": ({"dims": ()}, r"dims must be different positive widths.*found \(\)"),
    "equal-dims": ({"dims": (8, 8)}, r"dims must be different"),
    "zero-dim": ({"dims": (0,)}, r"dims must be different positive"),
    "structure-end": ({"layer_structure": (1, 2)}, r"start and end with 1.*found \(1, 2\)"),
    "structure-empty": ({"layer_structure": ()}, "start and end with 1"),
    "dropout-short": ({"dropout_structure": (0, 0.1)}, "one probability for each of the 3"),
    "dropout-one": ({"dropout_structure": (0, 1, 0)}, "at least 0, below 1"),
    "activation": ({"activation_func": "rulu"}, "'rulu' is not known; it is one of: .*relu"),
    "initialiser": ({"weight_initialization": "zero"}, "'zero' is not known; it is one of: id"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_refused_with_what_can(case):
    changes, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        make_net(**changes)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_hidden_width_of_zero_is_built_as_in_the_web_ui():
    net = make_net(layer_structure=(1, 0.01, 1), weight_initialization="Normal")
    x = torch.randn(2, 3, 16)
    assert torch.equal(net(x, x)[0], x)


def test_hidden_widths_are_cut_not_rounded():
    net = make_net(dims=(16,), layer_structure=(1, 0.3, 1.7, 1))
    layers = [layer for layer in net.pairs["16"]["k"].linear if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [4, 27, 16]


def test_a_module_adds_its_change_times_the_strength():
    net = make_net(activation_func="relu", weight_initialization="Normal")
    module, x = net.pairs["16"]["k"], torch.randn(2, 3, 16)
    torch.testing.assert_close(module(x, -0.3), x - 0.3 * module.linear(x))
    assert torch.equal(module.train()(x, -0.3), x + module.linear(x))


def test_a_width_without_a_pair_passes_unchanged():
    x = torch.randn(2, 3, 12)
    k, v = transform_context(x, [(make_net(weight_initialization="Normal"), 1.0)])
    assert k is x
    assert v is x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_context_stays_so_and_is_computed_in_float32(dtype):
    net = make_net(activation_func="tanh", weight_initialization="XavierNormal")
    x = torch.randn(2, 3, 16).to(dtype)
    k, _ = net(x, x)
    assert k.dtype == dtype
    assert torch.equal(k, x + net.pairs["16"]["k"].linear(x.float()).to(dtype))


def test_under_autocast_the_layers_compute_in_half_precision():
    net = make_net(weight_initialization="XavierNormal")
    inner = []
    net.pairs["16"]["k"].linear[0].register_forward_hook(lambda *call: inner.append(call[2].dtype))
    x = torch.randn(2, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        k, _ = net(x, x)
    assert inner == [torch.bfloat16]
    assert k.dtype == torch.float32


@pytest.mark.parametrize(
    "changes", [{"dropout_structure": (0, 0.5, 0)}, {"activation_func": "rrelu"}]
)
def test_what_draws_at_random_does_so_in_training_only(changes):
    net = make_net(weight_initialization="XavierNormal", **changes)
    x = torch.randn(2, 3, 16)
    assert not net.has_active_dropout
    assert torch.equal(net(x, x)[0], net(x, x)[0])
    assert net.train().has_active_dropout
    assert not torch.equal(net(x, x)[0], net(x, x)[0])


def test_a_dropout_structure_sets_the_flags_of_other_hosts():
    config = HypernetworkConfig(dims=(8,), dropout_structure=(0, 0.2, 0))
    assert config.use_dropout
    assert config.last_layer_dropout
    assert not HypernetworkConfig(dims=(8,)).use_dropout


def test_wrong_tensors_are_all_named():
    net = make_net(dims=(8,))
    tensors = dict(net.tensors())
    del tensors["8.k.linear.0.bias"]
    tensors["8.v.linear.0.bias"] = torch.zeros(3)
    tensors["8.v.other"] = torch.zeros(3)
    with pytest.raises(ModelError) as caught:
        Contents(config=net.config, provenance=net.provenance, tensors=tensors).check()
    assert "8.k.linear.0.bias is missing" in str(caught.value)
    assert "8.v.linear.0.bias has the shape (3,), not (16,)" in str(caught.value)
    assert "'8.v.other' is not part of this structure" in str(caught.value)
