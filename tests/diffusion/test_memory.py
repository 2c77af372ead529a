"""Plans that save memory: the same bits, less memory, and the cheapest one that fits."""

import copy
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hn.benchmark.memory import PeakMemory
from hn.diffusion.attention import context_dims
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.memory.choice import choose, climb
from hn.diffusion.memory.functions import convolve
from hn.diffusion.memory.plan import Plan, blocks_of, gates_of
from hn.diffusion.memory.quantisation import store_in_float8, stored_nbytes
from hn.diffusion.memory.rehearsal import Step, meta_unet, rehearse
from hn.network.description import HypernetworkConfig
from hn.network.module import Hypernetwork
from tests import tiny
from tests.operations import Operations

MIB = 2**20
SD15 = json.dumps({"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8})
WEB_UI = 1700 * MIB  # its step on Stable Diffusion 1.5, 512 pixels, counted the same way


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny.make_unet()


def plans(unet) -> dict[str, Plan]:
    some = frozenset(sorted(blocks_of(unet))[::2])
    lean = Plan(frozen_aware=True)
    return {
        "frozen-aware": lean,
        "gates": replace(lean, gates=gates_of(unet)),
        "blocks": Plan(blocks=blocks_of(unet)),
        "some": replace(lean, gates=gates_of(unet), blocks=some),
        "offloaded": replace(lean, blocks=some, offload=True),
    }


def step(unet, plan, dtype=torch.float32, precision=None, wrap=lambda module: module):
    """Prediction and gradients of a step, and what was held of the second one."""
    net = Hypernetwork.create(tiny.DIMS, activation_func="mish", seed=1)
    net.to(dtype).train()
    denoiser = Denoiser(unet, net, plan=plan)
    wrapped = wrap(denoiser)
    torch.manual_seed(2)
    noisy = torch.randn(2, 4, 8, 8).to(dtype)
    condition = Condition(context=torch.randn(2, 7, tiny.CONTEXT_DIM).to(dtype))
    with PeakMemory() as held:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
            prediction, _ = wrapped(noisy, torch.tensor([3, 700]), condition)
        prediction.float().square().mean().backward()
    denoiser.attachment.detach()
    denoiser.arrangement.remove()
    return [prediction, *(p.grad for p in net.parameters())], held


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("name", ["frozen-aware", "gates", "blocks", "some", "offloaded"])
def test_a_plan_changes_no_bit(unet, name, precision):
    dtype = torch.bfloat16 if precision else torch.float32
    unet = torch.nn.Module.to(unet, dtype)
    plain, _ = step(unet, Plan(), dtype, precision)
    planned, _ = step(unet, plans(unet)[name], dtype, precision)
    assert all(torch.equal(a, b) for a, b in zip(plain, planned, strict=True))
    torch.nn.Module.to(unet, torch.float32)


def test_a_plan_changes_no_bit_in_a_distributed_wrapper(unet, tmp_path):
    plain, _ = step(unet, Plan())
    meeting = {"init_method": f"file://{tmp_path / 'meeting'}", "rank": 0, "world_size": 1}
    torch.distributed.init_process_group("gloo", **meeting)
    try:
        planned, _ = step(unet, plans(unet)["some"], wrap=DistributedDataParallel)
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(plain, planned, strict=True))


def test_gradients_are_those_of_float64(unet):
    found, _ = step(unet, Plan(frozen_aware=True, gates=gates_of(unet)))
    exact, _ = step(torch.nn.Module.to(unet, torch.float64), Plan(), torch.float64)
    torch.nn.Module.to(unet, torch.float32)
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.norm() + 1e-9


@pytest.mark.parametrize(
    ("size", "channels", "settings", "product"),
    [
        ((2, 4, 4), (640, 768), {}, True),
        ((1, 9, 6), (640, 768), {"stride": 2, "bias": False}, True),
        ((2, 16, 16), (640, 768), {}, False),  # many positions
        ((2, 4, 4), (640, 512), {}, False),  # a small weight
        ((2, 4, 4), (1280, 768), {"groups": 2}, False),
    ],
)
def test_a_large_convolution_of_few_positions_is_a_product(size, channels, settings, product):
    """Of the same values and gradients as torch's, within float32's rounding of sums of 5,760."""
    torch.manual_seed(0)
    layer = nn.Conv2d(channels[0], channels[1], 3, padding=1, **settings).requires_grad_(False)
    x = torch.randn(size[0], channels[0], *size[1:], requires_grad=True)
    with Operations() as called:
        found = convolve(layer, x)
        (grad,) = torch.autograd.grad(found.square().sum(), x)
    assert any("convolution" in name for name in called.counts) != product
    exact = x.detach().double().requires_grad_()
    wanted = copy.deepcopy(layer).double()(exact)
    (wanted_grad,) = torch.autograd.grad(wanted.square().sum(), exact)
    assert found.shape == wanted.shape
    assert found.is_contiguous()
    for a, b in ((found, wanted), (grad, wanted_grad)):
        assert (a.double() - b).norm() <= 1e-6 * b.norm()


def test_every_plan_keeps_less_and_gives_the_unet_back(unet):
    _, before = step(unet, Plan())
    for name, plan in plans(unet).items():
        _, held = step(unet, plan)
        if not plan.offload:  # on a CPU, what is offloaded lies in the same memory
            assert held.saved < before.saved, name
        assert not [m for m in unet.modules() if "forward" in vars(m)], name
        assert not unet.is_gradient_checkpointing
        assert not unet.training


def test_what_is_not_frozen_or_not_as_in_stable_diffusion_stays_as_it_is(unet):
    """A convolution that learns gets its gradient, though its forward pass was replaced."""
    plain, _ = step(unet, Plan())
    net = Hypernetwork.create(tiny.DIMS, activation_func="mish", seed=1).train()
    denoiser = Denoiser(unet, net, plan=Plan(frozen_aware=True))
    unet.conv_out.weight.requires_grad_(True)
    condition = Condition(context=torch.randn(1, 7, tiny.CONTEXT_DIM))
    denoiser(torch.randn(1, 4, 8, 8), torch.tensor([3]), condition)[0].sum().backward()
    assert unet.conv_out.weight.grad is not None
    unet.requires_grad_(False).conv_out.weight.grad = None
    denoiser.attachment.detach()
    denoiser.arrangement.remove()
    again, _ = step(unet, Plan())
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_frozen_layers_compile_in_their_blocks(unet):
    """Regional compilation traces the replaced layers, and gradients stay."""
    plain, _ = step(unet, Plan())
    compiled = tiny.make_unet()
    compiled.load_state_dict(unet.state_dict())
    for name in blocks_of(compiled):
        compiled.get_submodule(name).compile(backend="aot_eager")
    planned, _ = step(compiled, Plan(frozen_aware=True))
    for a, b in zip(plain, planned, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "frozen-aware", "gates", "blocks", "some"])
def test_weights_in_float8_compute_what_they_hold_to_the_bit(name):
    """Stored in eight bits, the UNet is that of the rounded weights, forward and backward."""
    torch.manual_seed(0)
    rounded, stored = tiny.make_unet(), tiny.make_unet()
    stored.load_state_dict(rounded.state_dict())
    store_in_float8(stored)
    for key, weight in stored.named_parameters():
        rounded.get_parameter(key).data.copy_(weight.float())
    assert stored.dtype == torch.float32
    assert stored_nbytes(stored, "fp8") < 0.3 * stored_nbytes(rounded, "none")
    plan = plans(stored).get(name, Plan())
    (exact, _), (found, _) = step(rounded, Plan()), step(stored, plan)
    assert all(torch.equal(a, b) for a, b in zip(exact, found, strict=True))


def sd15_step(activation: str | None) -> Step:
    dims = context_dims(meta_unet(SD15, torch.bfloat16))
    network = HypernetworkConfig(dims=dims, activation_func=activation)
    return Step(SD15, network, torch.bfloat16, 1, 64, 64, accumulates=True)


def test_stable_diffusion_takes_a_third_of_the_web_ui_and_an_eighth_with_checkpointing():
    """Activations of a picture of 512 pixels, all widths, bfloat16, without copies of weights."""
    this = sd15_step("linear")
    unet = meta_unet(SD15, torch.bfloat16)
    copies = 2 * sum(p.numel() for p in Hypernetwork(this.network, draw_weights=False).parameters())
    lean = Plan(frozen_aware=True)
    peaks = [
        rehearse(this, plan) - copies
        for plan in (
            Plan(),
            lean,
            replace(lean, gates=gates_of(unet)),
            replace(lean, blocks=blocks_of(unet)),
        )
    ]
    shares = [round(peak / WEB_UI, 3) for peak in peaks]
    assert shares[0] <= 0.51
    assert shares[1] <= 0.37
    assert shares[2] <= 0.29
    assert shares[3] <= 0.11


def tiny_step(**changes) -> Step:
    unet = json.dumps(dict(tiny.make_unet().config), default=str)
    network = HypernetworkConfig(dims=tiny.DIMS, activation_func="mish")
    return Step(unet, network, torch.float32, 2, 8, 8, 7, **changes)


def test_a_rehearsal_is_right_to_the_byte(unet):
    this = tiny_step()
    for name, plan in {"plain": Plan(), **plans(unet)}.items():
        if plan.offload:  # on a CPU, what is offloaded lies in the same memory
            continue
        _, held = step(unet, plan)
        assert abs(held.peak - rehearse(this, plan)) <= 0.02 * held.peak, name


def test_a_rehearsal_of_stable_diffusion_xl_is_right_to_the_byte():
    """Told of pooled texts and sizes, whose embedding no gradient needs."""
    unet = tiny.make_xl_unet()
    network = HypernetworkConfig(dims=tiny.XL_DIMS, activation_func="mish")
    described = json.dumps(dict(unet.config), default=str)
    this = Step(described, network, torch.float32, 2, 8, 8, 7)
    told = {"pooled": torch.randn(2, tiny.XL_POOLED_DIM), "time_ids": torch.full((2, 6), 16.0)}
    condition = Condition(context=torch.randn(2, 7, sum(tiny.XL_TEXT_DIMS)), **told)
    for plan in (Plan(), Plan(frozen_aware=True, blocks=blocks_of(unet))):
        net = Hypernetwork.create(tiny.XL_DIMS, activation_func="mish", seed=1).train()
        denoiser = Denoiser(unet, net, plan=plan)
        with PeakMemory() as held:
            prediction, _ = denoiser(torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), condition)
            prediction.float().square().mean().backward()
        denoiser.attachment.detach()
        denoiser.arrangement.remove()
        assert abs(held.peak - rehearse(this, plan)) <= 0.02 * held.peak


def test_the_cheapest_plan_that_fits_is_chosen():
    this = tiny_step()
    rungs = climb(this)
    order = [rung.plan for rung in rungs]
    assert all(a.cost.operations <= b.cost.operations for a, b in pairwise(rungs))
    most, least = rehearse(this, order[0]), rehearse(this, order[-1])
    assert choose(this, most).plan == order[0]
    assert choose(this, least - 1).plan == order[-1]
    assert choose(this, most, plain=False).plan == order[1]
    room = (most + least) // 2
    chosen = order.index(choose(this, room).plan)
    assert rehearse(this, order[chosen]) <= room < rehearse(this, order[chosen - 1])
