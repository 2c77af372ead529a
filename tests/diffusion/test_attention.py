"""Hypernetworks in attention: the web UI's numbers, and a UNet before, during and after."""

import importlib.util
import warnings

import pytest
import torch
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor
from torch import nn
from torch.nn import functional as F

import hn
from hn.diffusion.attending.kernels import sdpa
from hn.diffusion.attending.processor import HypernetworkAttention
from hn.diffusion.attention import context_dims
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import Denoiser
from hn.errors import ModelError, OptionError
from hn.network.module import Hypernetwork
from tests import golden
from tests.tiny import CONTEXT_DIM, DIMS, SELF_DIMS, make_unet

CASES = golden.read_json("attention/attention.json")
TENSORS = golden.read_tensors("attention/attention.safetensors")


def golden_layer(case) -> Attention:
    context = None if case["context"] is None else TENSORS[case["context"]].shape[-1]
    layer = Attention(32, context, heads=case["heads"], dim_head=case["dim_head"])
    prefix = f"attn/{case['attention']}/"
    layer.load_state_dict(
        {key.removeprefix(prefix): t for key, t in TENSORS.items() if key.startswith(prefix)}
    )
    return layer.eval()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
@torch.no_grad()
def test_attention_is_that_of_the_web_ui(case):
    stack = [
        (hn.load(golden.FOLDER / "attention" / f"{name}.pt"), strength)
        for name, strength in zip(case["hypernetworks"], case["strengths"], strict=True)
    ]
    layer = golden_layer(case)
    layer.set_processor(HypernetworkAttention(stack, sdpa, "mid_block", "mid"))
    mask = None
    if case["mask"]:  # as diffusers' UNet hands it down: (B, 1, T), to be added
        mask = (1 - TENSORS["mask"].float()).unsqueeze(1) * -10_000
    context = None if case["context"] is None else TENSORS[case["context"]]
    out, expected = layer(TENSORS["x"], context, mask), TENSORS[case["key"]]
    # The web UI computes softmax(q k) v in single steps, torch's kernel sums in another order:
    # a few units in the last place (6e-8) of sums over 48 channels and 9 tokens.
    assert (out - expected).abs().max() <= 2e-6 * expected.abs().max()


def make_net(dims=DIMS, **changes) -> Hypernetwork:
    settings = {"activation_func": "tanh", "weight_initialization": "XavierNormal", "seed": 1}
    return Hypernetwork.create(dims, **{**settings, **changes})


def make_inputs(dtype=torch.float32):
    draw = torch.Generator().manual_seed(3)
    noisy = torch.randn(2, 4, 8, 8, generator=draw)
    context = torch.randn(2, 5, CONTEXT_DIM, generator=draw)
    return noisy.to(dtype), torch.tensor([10, 700]), context.to(dtype)


@pytest.fixture(scope="module")
def shared_unet():
    torch.manual_seed(0)
    return make_unet().eval().requires_grad_(False)


@pytest.fixture
def unet(shared_unet):
    before = dict(shared_unet.attn_processors)
    yield shared_unet
    shared_unet.set_attn_processor(before)
    shared_unet._forward_pre_hooks.clear()


def predict(unet, **kwargs):
    noisy, timesteps, context = make_inputs(unet.dtype)
    return unet(noisy, timesteps, context, return_dict=False, **kwargs)[0]


@torch.no_grad()
def test_detaching_restores_the_very_processors_and_outputs(unet):
    processors, plain = dict(unet.attn_processors), predict(unet)
    attachment = hn.attach(unet, [(make_net(), 1.0)])
    assert not torch.equal(predict(unet), plain)
    attachment.detach()
    attachment.detach()
    assert all(unet.attn_processors[name] is old for name, old in processors.items())
    assert not unet._forward_pre_hooks
    assert torch.equal(predict(unet), plain)


@torch.no_grad()
def test_the_context_manager_detaches_after_an_error(unet):
    plain = predict(unet)
    with pytest.raises(ZeroDivisionError), hn.attach(unet, [(make_net(), 1.0)]):
        _ = 1 / 0
    assert torch.equal(predict(unet), plain)


@pytest.mark.parametrize("transform_once", [True, False])
@torch.no_grad()
def test_strength_zero_is_the_plain_unet_to_the_bit(unet, transform_once):
    plain = predict(unet)
    with hn.attach(unet, [(make_net(), 0.0)], transform_once=transform_once):
        assert torch.equal(predict(unet), plain)


@torch.no_grad()
def test_an_attached_stack_is_the_stack_in_every_layer(unet):
    nets = make_net(), make_net((CONTEXT_DIM,), seed=2)
    with hn.attach(unet, [(nets[0], 0.7), (nets[1], 0.4)]):
        forwards = predict(unet)
    with hn.attach(unet, [(nets[1], 0.4), (nets[0], 0.7)]):
        assert not torch.equal(predict(unet), forwards)


@torch.no_grad()
def test_a_mask_of_the_text_reaches_the_attention(unet):
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    plain = predict(unet, encoder_attention_mask=mask)
    with hn.attach(unet, [(make_net(), 0.0)]):
        assert torch.equal(predict(unet, encoder_attention_mask=mask), plain)
        assert not torch.equal(predict(unet), plain)


@torch.no_grad()
def test_at_strength_is_a_loan(unet):
    net = make_net()
    with hn.attach(unet, [(net.train(), 1.0)]) as attachment:
        full = predict(unet)
        with attachment.at_strength(0.0):
            without = predict(unet)
            assert not net.training
        assert net.training
        assert torch.equal(predict(unet), full)
    assert torch.equal(without, predict(unet))


def gradients(unet, net, **settings):
    """Output, loss and gradients of one training step."""
    net.train().zero_grad()
    denoiser = Denoiser(unet, net, **settings)
    noisy, timesteps, context = make_inputs()
    out, _ = denoiser(noisy, timesteps, Condition(context=context))
    loss = (out - noisy).square().mean()
    loss.backward()
    denoiser.attachment.detach()
    unet.disable_gradient_checkpointing()
    unet.eval()
    return out.detach(), loss.item(), {name: p.grad.clone() for name, p in net.named_parameters()}


def assert_same_gradients(found, expected):
    size = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6 * float(size))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_transforming_once_equals_transforming_in_every_layer(unet, checkpointing):
    once, each = (
        gradients(
            unet, make_net(), transform_once=transform_once, gradient_checkpointing=checkpointing
        )
        for transform_once in (True, False)
    )
    assert torch.equal(once[0], each[0])
    assert_same_gradients(once[2], each[2])
    assert all(gradient.any() for gradient in once[2].values())


def calls_of(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def cross_layers(unet):
    layers = [module for module in unet.modules() if isinstance(module, Attention)]
    return [layer for layer in layers if layer.to_k.in_features == CONTEXT_DIM]


def test_gradient_checkpointing_computes_again_and_changes_nothing(unet):
    calls = [calls_of(layer.to_k) for layer in cross_layers(unet)]
    plain = gradients(unet, make_net())
    assert {len(layer) for layer in calls} == {1}
    checkpointed = gradients(unet, make_net(), gradient_checkpointing=True)
    assert {len(layer) for layer in calls} == {1 + 2}
    assert checkpointed[1] == plain[1]
    assert_same_gradients(checkpointed[2], plain[2])


@pytest.mark.parametrize(
    "changes", [{"dropout_structure": (0, 0.3, 0)}, {"activation_func": "rrelu"}]
)
@torch.no_grad()
def test_what_draws_at_random_is_drawn_in_every_layer(unet, changes):
    net = make_net(**changes)
    calls = calls_of(net.pairs[str(CONTEXT_DIM)]["k"])
    with hn.attach(unet, [(net, 1.0)]):
        predict(unet)
        assert len(calls) == 1
        net.train()
        predict(unet)
    assert len(calls) == 1 + len(cross_layers(unet)) > 2


def test_only_the_hypernetwork_is_trained(unet):
    net = make_net()
    denoiser = Denoiser(unet.requires_grad_(True), net)
    noisy, timesteps, context = make_inputs()
    denoiser(noisy, timesteps, Condition(context=context))[0].square().sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in unet.parameters())
    assert {id(p) for p in denoiser.parameters()} == {id(p) for p in net.parameters()}
    assert set(denoiser.state_dict()) == {f"hypernetwork.{key}" for key in net.state_dict()}


def test_the_unets_context_widths_are_found(unet):
    assert context_dims(unet) == tuple(sorted({*SELF_DIMS, CONTEXT_DIM}))


def test_a_hypernetwork_of_another_base_model_is_refused(unet):
    net = make_net((768, 320), name="stranger")
    with pytest.raises(ModelError, match=r"stranger has the widths \(768, 320\).*\(16, 24, 32\)"):
        hn.attach(unet, [(net, 1.0)])


def test_a_width_that_nothing_reads_is_warned_about_and_the_others_work(unet):
    net = make_net((CONTEXT_DIM, 768))
    with pytest.warns(UserWarning, match=r"no attention of width \[768\]"):
        attachment = hn.attach(unet, [(net, 1.0)])
    attachment.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hn.attach(unet, [(make_net((CONTEXT_DIM,)), 1.0)])


def test_attaching_twice_is_refused(unet):
    attachment = hn.attach(unet, [(make_net(), 1.0)])
    with pytest.raises(ModelError, match="attach all as one stack"):
        hn.attach(unet, [(make_net(), 1.0)])
    attachment.detach()
    hn.attach(unet, [(make_net(), 1.0)]).detach()


def test_anothers_processor_is_not_replaced(unet):
    name = next(iter(unet.attn_processors))
    others = IPAdapterAttnProcessor(16, 16)
    unet.set_attn_processor({**unet.attn_processors, name: others})
    with pytest.raises(ModelError, match="IPAdapterAttnProcessor"):
        hn.attach(unet, [(make_net(), 1.0)])
    assert unet.attn_processors[name] is others


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="it is installed")
@torch.no_grad()
def test_missing_xformers_is_named_with_the_remedy(unet):
    plain = predict(unet)
    with pytest.raises(OptionError, match=r"pip install.*or use attention_kernel 'sdpa'"):
        hn.attach(unet, [(make_net(), 1.0)], kernel="xformers")
    assert torch.equal(predict(unet), plain)


@torch.no_grad()
def test_upcast_attention_attends_in_float32():
    torch.manual_seed(0)
    layer = Attention(32, 48, heads=4, dim_head=8, upcast_attention=True).to(torch.bfloat16)
    layer.set_processor(HypernetworkAttention([], sdpa, "mid_block", "mid"))
    x, context = torch.randn(2, 9, 32).bfloat16() * 3, torch.randn(2, 7, 48).bfloat16() * 3
    heads = [
        y.unflatten(-1, (4, 8)).transpose(1, 2).float()
        for y in (layer.to_q(x), layer.to_k(context), layer.to_v(context))
    ]
    attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = layer(x, context)
    assert torch.equal(layer(x, context), layer.to_out[0](attended))
    assert torch.equal(under_autocast, layer.to_out[0](attended))
    layer.upcast_attention = False
    assert not torch.equal(layer(x, context), layer.to_out[0](attended))


@torch.no_grad()
def test_a_unet_that_asks_for_upcasting_gets_it():
    outputs = []
    for upcast in (False, True):
        torch.manual_seed(0)
        unet = make_unet(upcast_attention=upcast).bfloat16().eval()
        with hn.attach(unet, [(make_net(), 1.0)]):
            outputs.append(predict(unet))
    assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
    assert not torch.equal(*outputs)
    torch.testing.assert_close(*outputs, rtol=0.1, atol=0.1)


def test_attention_of_another_kind_is_refused():
    unet = make_unet()
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.norm_cross = nn.LayerNorm(CONTEXT_DIM)
    with pytest.raises(ModelError, match="another kind"):
        hn.attach(unet, [(Hypernetwork.create((16,), seed=0), 1.0)])
