"""Rates by width, bounds of weights, and what is said of optimizers."""

import sys

import pytest
import torch
from accelerate import Accelerator

from hn.config import OptimizerConfig
from hn.errors import OptionError
from hn.network.module import Hypernetwork
from hn.training.optimizers import (
    as_one_group,
    build_optimizer,
    find_class,
    remark,
    set_rate,
    state_bytes,
)
from hn.training.schedule import Schedule, Stage
from hn.training.state import TrainingState
from hn.training.watching.guard import Guard

DIMS = (16, 24, 32)
EXTRAS = ["prodigyopt.Prodigy", "schedulefree.AdamWScheduleFree", "lion_pytorch.Lion"]


def make(**settings):
    net = Hypernetwork.create(DIMS, weight_initialization="XavierNormal", seed=0)
    return net, build_optimizer(net, OptimizerConfig(**settings), 1e-3)


def take_steps(net, optimizer, steps=3):
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        set_rate(optimizer, 1e-3 / (1 + step))
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()


def test_each_width_has_its_factor_at_every_step():
    net, optimizer = make(width_learning_rates=("16=2", "32=0.25"))
    for rate in (1e-3, 3e-5):
        assert set_rate(optimizer, rate) == rate
        assert [group["lr"] for group in optimizer.param_groups] == [2 * rate, rate, 0.25 * rate]
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(owned, net.parameters(), strict=True))


def test_a_width_of_factor_one_learns_as_without_and_another_as_with_that_rate():
    nets = {}
    for name, settings in (("plain", {}), ("widths", {"width_learning_rates": ("16=2", "32=0.5")})):
        nets[name], optimizer = make(**settings, optimizer="SGD")
        take_steps(nets[name], optimizer)
    start, _ = make()
    for dim, factor in zip(DIMS, (2, 1, 0.5), strict=True):
        tensors = zip(
            *(net.module(dim, "k").parameters() for net in (start, nets["plain"], nets["widths"])),
            strict=True,
        )
        for before, plain, scaled in tensors:
            torch.testing.assert_close(scaled - before, factor * (plain - before))


def test_a_state_of_several_groups_is_told_as_one():
    net, optimizer = make(width_learning_rates=("16=2",))
    take_steps(net, optimizer)
    state = as_one_group(optimizer.state_dict())
    plain = torch.optim.AdamW(net.parameters(), lr=7.0)
    plain.load_state_dict(state)
    assert plain.param_groups[0]["lr"] == pytest.approx(1e-3 / 3)
    assert "rate_factor" not in plain.param_groups[0]
    for parameter in net.parameters():
        assert torch.equal(plain.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_a_width_that_is_not_there_is_named():
    with pytest.raises(OptionError, match="the hypernetwork has no width 80; it has 16 24 32"):
        make(width_learning_rates=("80=2",))


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("layer_norm", [False, True])
def test_matrices_above_the_bound_are_scaled_back_to_it_and_counted(layer_norm):
    net = Hypernetwork.create(
        DIMS, weight_initialization="XavierNormal", is_layer_norm=layer_norm, seed=0
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    norms = {name: float(p.double().norm()) for name, p in before.items() if p.dim() == 2}
    middle = sorted(norms.values())[len(norms) // 2 :]
    bound = (middle[0] + middle[1]) / 2
    schedule = Schedule((Stage(1.0, 10),))
    guard = Guard(Accelerator(cpu=True), net, "none", schedule, max_weight_norm=bound)
    assert guard.counts() == {"capped_weights": 0}
    state = TrainingState(net, torch.optim.SGD(net.parameters()))
    for _ in range(2):
        guard.check(False, state)
    for name, parameter in net.named_parameters():
        if norms.get(name, 0) <= bound:
            assert torch.equal(parameter, before[name]), name
        else:
            expected = before[name].double() * bound / norms[name]
            torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-6, atol=0)
    above = sum(norm > bound for norm in norms.values())
    assert above >= 3
    assert guard.counts()["capped_weights"] >= above


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name.partition(".")[0], None)
    with pytest.raises(OptionError, match=r"is not found .* pip install -e '\.\[optimizers\]'"):
        find_class(name)


@pytest.mark.parametrize("name", ["prodigyopt.Prodigy", "dadaptation.DAdaptAdam"])
def test_a_rate_for_an_optimizer_that_finds_its_own_is_remarked_on(name):
    said = remark(OptimizerConfig(optimizer=name, learning_rate="1e-5:10, 2e-5"))
    assert said is not None
    assert "for which 1 is usual; found 1e-5:10, 2e-5" in said
    assert remark(OptimizerConfig(optimizer=name, learning_rate="1")) is None
    assert remark(OptimizerConfig(learning_rate="1e-5")) is None


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 2),
        ({"optimizer": "SGD"}, 0),
        ({"optimizer": "SGD", "optimizer_args": ("momentum=0.9",)}, 1),
        ({"optimizer": "LBFGS"}, 2),  # takes no step as ours do
    ],
)
def test_the_state_of_an_optimizer_is_known_before_it_is_made(settings, share):
    assert state_bytes(OptimizerConfig(**settings), 1000) == 1000 * share


def test_a_paged_optimizer_has_as_much_state():
    pytest.importorskip("bitsandbytes")
    names = ("bitsandbytes.optim.AdamW8bit", "bitsandbytes.optim.PagedAdamW8bit")
    bytes_of = [state_bytes(OptimizerConfig(optimizer=name), 4_000_000) for name in names]
    assert bytes_of[0] == bytes_of[1] == pytest.approx(2_000_000, rel=0.1)
