"""Averages follow their formulas, are looked at without a trace, and go on to the bit."""

import copy

import pytest
import torch
from schedulefree import AdamWScheduleFree

from hn.network.module import Hypernetwork
from hn.training.averages import Averages, Ema, ScheduleFree, View


def make():
    net = Hypernetwork.create((16, 24), activation_func="relu", seed=0)
    return net, torch.Generator().manual_seed(1)


def shake(net, generator):
    """Some change of the weights, as a step makes it."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def bits(net):
    return [parameter.detach().clone() for parameter in net.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_average_follows_its_formula():
    """Against float64, over the steps in which its decay rises to the one that is set."""
    net, generator = make()
    ema = Ema(net, 0.9)
    expected = [weight.double() for weight in bits(net)]
    for updates in range(120):
        shake(net, generator)
        ema.update()
        d = min(0.9, (1 + updates) / (10 + updates))
        expected = [d * a + (1 - d) * w.double() for a, w in zip(expected, bits(net), strict=True)]
    assert ema.decay(0) == 0.1
    assert ema.decay(79) < 0.9 == ema.decay(81)
    with ema.applied():
        for found, exact in zip(net.parameters(), expected, strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


def averaged_by(net, optimizer, generator, steps):
    for _ in range(steps):
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_a_schedule_free_run_is_about_the_mean_of_what_runs_ahead():
    """2405.15682: with a constant rate x is the mean of z after each step, and y is between."""
    net, generator = make()
    optimizer = AdamWScheduleFree(net.parameters(), lr=1e-2, betas=(0.9, 0.999))
    view = ScheduleFree(net, optimizer)
    ahead = []
    for _ in range(5):
        averaged_by(net, optimizer, generator, 1)
        ahead.append([optimizer.state[p]["z"].double() for p in net.parameters()])
    mean = [torch.stack(each).mean(0) for each in zip(*ahead, strict=True)]
    between = [0.1 * z + 0.9 * x for z, x in zip(ahead[-1], mean, strict=True)]
    for found, exact in zip(net.parameters(), between, strict=True):
        torch.testing.assert_close(found.detach().double(), exact, rtol=0, atol=1e-6)
    with view.applied():
        for found, exact in zip(net.parameters(), mean, strict=True):
            torch.testing.assert_close(found.detach().double(), exact, rtol=0, atol=1e-6)


def schedule_free(net):
    return ScheduleFree(net, AdamWScheduleFree(net.parameters(), lr=1e-2))


@pytest.mark.parametrize("make_view", [lambda net: Ema(net, 0.9), schedule_free])
@pytest.mark.parametrize("fails", [False, True])
def test_looking_leaves_the_weights_to_the_bit(make_view, fails):
    net, generator = make()
    view = make_view(net)
    if isinstance(view, ScheduleFree):
        averaged_by(net, view._optimizer, generator, 3)
    shake(net, generator)
    view.update()
    before = bits(net)
    for _ in range(3):
        try:
            with view.applied():
                assert not same(bits(net), before)
                if fails:
                    raise RuntimeError
        except RuntimeError:
            assert fails
        assert same(bits(net), before)


def test_an_average_goes_on_where_it_was():
    net, generator = make()
    whole = Averages([View(), Ema(net, 0.99)])
    for _ in range(7):
        shake(net, generator)
        whole.update()
    saved, twin = whole.tensors(), copy.deepcopy(net)
    again = Averages([View(), Ema(twin, 0.99)])
    again.restore(saved)
    later = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    for each, averages, draw in zip((net, twin), (whole, again), later, strict=True):
        shake(each, draw)
        averages.update()
    assert same(whole.tensors().values(), again.tensors().values())
    assert (saved["ema.updates"], whole.tensors()["ema.updates"]) == (7, 8)
