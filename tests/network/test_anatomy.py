"""What is measured of weights, held against networks built to have it."""

import pytest
import torch
from torch import nn

import hn
from hn.errors import ModelError
from hn.network import anatomy
from hn.network.contents import Contents
from hn.network.module import Hypernetwork


def facts(net: Hypernetwork) -> anatomy.ModuleFacts:
    """Of the k module of its first width."""
    return next(anatomy.examine(Contents.of(net)))


def linear(weight: torch.Tensor, bias: float = 0.0) -> Hypernetwork:
    """One layer that adds `weight @ context + bias`."""
    net = hn.Hypernetwork.create((len(weight),), layer_structure=(1, 1))
    layer = net.module(len(weight), "k").linear[0]
    assert isinstance(layer, nn.Linear)
    layer.weight.data, layer.bias.data = weight, torch.full((len(weight),), float(bias))
    return net


def test_units_that_are_dead_by_construction_are_counted():
    """Of 64 hidden units: 5 far below zero, 7 without input, 3 far below zero in the second."""
    net = hn.Hypernetwork.create(
        (32,),
        layer_structure=(1, 2, 2, 1),
        activation_func="relu",
        weight_initialization="KaimingNormal",
        seed=0,
    )
    first, second = (net.module(32, "k").linear[i] for i in (0, 2))
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    first.bias.data[:5] = -1000
    first.weight.data[10:17] = 0
    first.bias.data[10:17] = 0.3
    second.bias.data[60:63] = -1000
    assert (facts(net).dead, facts(net).units) == (15, 128)


@pytest.mark.parametrize("bias", [-1000, 0.1])
def test_all_units_can_be_dead(bias):
    net = hn.Hypernetwork.create((32,), activation_func="relu", seed=0)
    first = net.module(32, "k").linear[0]
    assert isinstance(first, nn.Linear)
    first.weight.data[:], first.bias.data[:] = 0, bias
    assert (facts(net).dead, facts(net).units) == (64, 64)


def test_a_linear_network_has_no_dead_units():
    assert (facts(linear(torch.eye(16))).dead, facts(linear(torch.eye(16))).units) == (0, 0)


@pytest.mark.parametrize("width", [16, 64])
def test_ranks_are_those_of_the_matrices(width):
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    outer = torch.outer(rotation[0], rotation[1])
    half = rotation.clone()
    half[width // 2 :] = 0
    assert facts(linear(outer, bias=100)).rank == pytest.approx(1, abs=1e-3)
    assert facts(linear(rotation)).rank == pytest.approx(width, rel=0.02)
    assert facts(linear(half)).rank == pytest.approx(width / 2, rel=0.02)


@pytest.mark.parametrize("bias", [0, 0.1, 1e6])
def test_a_constant_has_rank_zero(bias):
    assert facts(linear(torch.zeros(16, 16), bias)).rank == 0


def test_change_is_the_size_of_what_is_added():
    """For a context of variance 1, W x + b has the mean square |W|^2 / D + b^2."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    expected = (float(weight.square().sum()) / 64 + 0.5**2) ** 0.5
    assert facts(linear(weight, bias=0.5)).change == pytest.approx(expected, rel=0.02)
    assert facts(hn.Hypernetwork.create((64,))).change == 0


def test_size_and_count_of_the_weights():
    found = facts(linear(torch.full((4, 4), 0.5), bias=2))
    assert (found.dim, found.side, found.parameters) == (4, "k", 20)
    assert found.weight_norm == pytest.approx((16 * 0.25 + 4 * 4) ** 0.5)


def test_nothing_is_drawn_from_the_global_generator():
    net = linear(torch.eye(4))
    torch.manual_seed(0)
    expected = torch.randn(1)
    torch.manual_seed(0)
    facts(net)
    assert torch.equal(torch.randn(1), expected)


def test_large_weights_are_measured_and_larger_ones_refused():
    assert facts(linear(torch.eye(8) * 1e38)).rank == pytest.approx(8, rel=0.02)
    net = hn.Hypernetwork.create((8,), layer_structure=(1,) * 11, weight_initialization="Normal")
    for parameter in net.parameters():
        parameter.data.fill_(3e38)
    with pytest.raises(ModelError, match=r"8\.k are so large that its outputs overflow"):
        facts(net)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_hidden_layer_without_units_has_none_dead():
    net = hn.Hypernetwork.create((16,), layer_structure=(1, 0.01, 1), activation_func="relu")
    found = facts(net)
    assert (found.dead, found.units, found.rank) == (0, 0, 0)


@pytest.mark.parametrize("structure", [(1,), (1, 1)])
def test_a_network_without_hidden_layers_is_measured(structure):
    net = hn.Hypernetwork.create((8,), layer_structure=structure, weight_initialization="Normal")
    assert facts(net).units == 0
