"""Keys and values of the text from few large products: those of the layers' own."""

from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hn
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import Denoiser, predict
from tests.diffusion import test_attention as attention
from tests.diffusion.test_attention import (
    assert_same_gradients,
    cross_layers,
    make_inputs,
    make_net,
)
from tests.tiny import CONTEXT_DIM, make_unet

gradients = partial(attention.gradients, stack_projections=True)


def make_own(dtype=torch.float32):
    torch.manual_seed(0)
    return make_unet().eval().requires_grad_(False).to(dtype)


def joined(gradient: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradient.values()]).double()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_double_precision(checkpointing):
    exact = make_own(torch.float64)
    inputs = [x.double() if x.is_floating_point() else x for x in make_inputs()]
    net = make_net().double().train()
    denoiser = Denoiser(exact, net, stack_projections=False)
    noisy, timesteps, context = inputs
    (denoiser(noisy, timesteps, Condition(context=context))[0] - noisy).square().mean().backward()
    expected = joined({name: p.grad for name, p in net.named_parameters()})
    errors = {}
    for stacked in (False, True):
        settings = {"stack_projections": stacked, "gradient_checkpointing": checkpointing}
        found = joined(gradients(make_own(), make_net(), **settings)[2])
        errors[stacked] = float((found - expected).norm() / expected.norm())
    assert max(errors.values()) < 2e-6
    assert errors[True] < 2 * errors[False]


class Products(TorchDispatchMode):
    """Counts matrix products of a context of 2 x 5 tokens with frozen weights."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default and args[0].shape == (10, CONTEXT_DIM):
            self.count += not args[1].requires_grad
        return func(*args, **(kwargs or {}))


def test_large_products_take_the_place_of_small_ones():
    unet, counted = make_own(), {}
    layers = cross_layers(unet)
    for stacked in (False, True):
        with Products() as products:
            gradients(unet, make_net(), stack_projections=stacked)
        counted[stacked] = products.count
    assert counted[False] - counted[True] == 2 * len(layers) - 2 >= 8


def test_the_weights_are_not_stored_twice_and_stay_what_they_are(tmp_path):
    unet = make_own()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    gradients(unet, make_net())
    for side in ("to_k", "to_v"):
        weights = [getattr(layer, side).weight for layer in cross_layers(unet)]
        assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
        assert weights[0].untyped_storage().nbytes() == sum(w.nbytes for w in weights)
        assert all(weight.is_contiguous() and not weight.requires_grad for weight in weights)
    unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in before.items())


def test_weights_that_move_or_change_are_seen():
    unet, net = make_own(), make_net()
    gradients(unet, net)
    layer = cross_layers(unet)[1]
    layer.to_k.weight.data = layer.to_k.weight.data * 2
    layer.to_v.weight.data.mul_(2)  # a view: the matrix has it
    found = gradients(unet, make_net())
    fresh = make_own()
    fresh.load_state_dict(unet.state_dict())
    expected = gradients(fresh, make_net(), stack_projections=False)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    unet.to(torch.float64).to(torch.float32)
    torch.testing.assert_close(gradients(unet, make_net())[0], expected[0], rtol=1e-5, atol=1e-6)


def spoil(unet, kind):
    """Make one layer's keys something else than a frozen product."""
    layer = cross_layers(unet)[1]
    if kind == "lora":
        target = r".*mid_block.*attn2\.to_k"
        unet.add_adapter(LoraConfig(r=2, target_modules=target, init_lora_weights=False))
        unet.requires_grad_(False)
    elif kind == "bias":
        layer.to_v.bias = nn.Parameter(torch.ones(layer.to_v.out_features), requires_grad=False)
    elif kind == "hook":
        layer.to_k.register_forward_hook(lambda module, args, out: out * 2)
    elif kind == "forward":
        layer.to_k.forward = lambda x: nn.functional.linear(x, layer.to_k.weight) * 2
    elif kind == "dtype":
        layer.to_k = WideLinear(layer.to_k)


class WideLinear(nn.Linear):
    """Another class, as quantised layers are."""

    def __init__(self, source):
        super().__init__(source.in_features, source.out_features, bias=False)
        self.weight = source.weight

    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize("kind", ["lora", "bias", "hook", "forward", "dtype"])
def test_a_layer_that_computes_something_else_does_so_itself(kind):
    torch.manual_seed(2)
    unet, plain = make_own(), make_own()
    spoil(unet, kind)
    found = gradients(unet, make_net())
    expected = gradients(unet, make_net(), stack_projections=False)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(joined(found[2]), joined(expected[2]), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found[0], gradients(plain, make_net())[0], atol=1e-5)


def test_parts_that_read_with_other_strengths_have_their_own_products():
    unet, net = make_own(), make_net()
    noisy, timesteps, context = make_inputs()
    strength = hn.Strength(0.9, down=0.2, up=-0.5, k=1.5)
    found = []
    for stacked in (False, True):
        with hn.attach(unet, [(net, strength)], stack_projections=stacked):
            found.append(unet(noisy, timesteps, context).sample)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    with hn.attach(unet, [(net, 0.9)]):
        assert not torch.allclose(unet(noisy, timesteps, context).sample, found[0], atol=1e-4)


def test_it_works_in_bfloat16_with_float32_weights():
    found = {}
    for stacked in (False, True):
        unet = make_own(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            found[stacked] = joined(gradients(unet, make_net(), stack_projections=stacked)[2])
    exact = joined(gradients(make_own(), make_net())[2])
    error = {stacked: (it - exact).norm() / exact.norm() for stacked, it in found.items()}
    assert max(error.values()) < 3e-2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_unet_of_half_precision_has_no_autocast_and_its_hypernetwork_has(checkpointing):
    """On a CPU autocast leaves norms alone, so nothing changes there, to the bit."""
    unet, seen = make_own(torch.bfloat16), []
    settings = {"gradient_checkpointing": checkpointing}
    with torch.autocast("cpu", torch.bfloat16):
        without = gradients(unet, make_net(), **settings)
        unet.conv_norm_out.register_forward_hook(
            lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
        )
        net = make_net()
        watched = net.module(CONTEXT_DIM, "k")
        watched.register_forward_hook(
            lambda module, args, out: seen.append(module.linear(args[0]).dtype)
        )
        gradients(unet, net, **settings)
        unet.conv_norm_out._forward_hooks.clear()
        around, out = autocast_gradients(unet, make_net())
    assert seen == [torch.bfloat16, False]
    assert torch.equal(without[0], out)
    assert_same_gradients(without[2], around)


def autocast_gradients(unet, net):
    """Gradients and output with autocast around everything."""
    noisy, timesteps, context = make_inputs(unet.dtype)
    with hn.attach(unet, [(net.train(), 1.0)], kernel="sdpa", stack_projections=True):
        out = predict(unet, noisy, timesteps, Condition(context=context))
    (out - make_inputs()[0]).square().mean().backward()
    return {name: p.grad for name, p in net.named_parameters()}, out.detach()
