"""Which layers of a UNet read through a hypernetwork that is for one side or some blocks alone."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import Attention

import hn
from hn.diffusion.attending.places import block_names, place_of
from hn.diffusion.attention import attention_layers
from hn.diffusion.denoiser import Condition, Denoiser
from hn.diffusion.surgery import lora
from hn.errors import ModelError
from hn.network.contents import Contents
from hn.network.module import Hypernetwork
from tests.diffusion.test_attention import make_inputs, make_net, predict
from tests.tiny import CONTEXT_DIM, make_unet

BLOCKS = [
    *("down", "down.0", "down.0.0", "down.1", "down.1.0", "mid", "mid.0"),
    *("up", "up.0", "up.0.0", "up.0.1", "up.1", "up.1.0", "up.1.1"),
]
ALONE = ("down.0", "down.1", "mid", "up.0", "up.1")
OWN = ((16, 24), (24, 32), (24, 32), (24, 32), (16, 24))


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return make_unet().eval().requires_grad_(False)


def per_block(net: Hypernetwork, *, same: bool) -> Hypernetwork:
    """The hypernetwork with modules for each block of the tiny UNet: its own, or others."""
    described = replace(net.config, blocks=ALONE, block_dims=OWN, complete=True)
    own = Hypernetwork.drawn(described, seed=9)
    if same:
        for part in own.parts():
            part.module.load_state_dict(net.module(part.dim, part.side).state_dict())
    return own


@torch.no_grad()
def read_by(unet, stack, **settings) -> set[tuple[str, str]]:
    """The places and sides that read something else than their context."""
    changed, handles, contexts = set(), [], {}
    for name, layer in attention_layers(unet).items():

        def note_context(_, args, kwargs, name=name):
            text = kwargs.get("encoder_hidden_states")
            contexts[name] = args[0] if text is None else text

        def note(_, args, name=name, side=""):
            if not torch.equal(args[0], contexts[name]):
                changed.add((place_of(name), side))

        handles.append(layer.register_forward_pre_hook(note_context, with_kwargs=True))
        for side in "kv":
            projection = getattr(layer, f"to_{side}")
            hook = lambda module, args, note=note, side=side: note(module, args, side=side)  # noqa: E731
            handles.append(projection.register_forward_pre_hook(hook))
    with hn.attach(unet, stack, **settings):
        predict(unet)
    for handle in handles:
        handle.remove()
    return changed


def expected(blocks, sides="kv"):
    places = {place_of(name) for name, _ in attention_layers(make_unet()).items()}
    inside = {it for it in places if any(f"{it}.".startswith(f"{block}.") for block in blocks)}
    return {(place, side) for place in inside for side in sides}


def test_blocks_are_named_from_in_to_out(unet):
    assert sorted(block_names(map(place_of, attention_layers(unet)))) == sorted(BLOCKS)


@pytest.mark.parametrize("blocks", [("mid",), ("down.1", "up.0.1"), ("up", "down.0")])
@pytest.mark.parametrize("sides", ["both", "k", "v"])
def test_only_the_named_blocks_and_sides_read_through_it(unet, blocks, sides):
    net = make_net(sides=sides, blocks=blocks)
    for once in (True, False):
        found = read_by(unet, [(net, 0.7)], transform_once=once)
        assert found == expected(blocks, {"both": "kv"}.get(sides, sides))


@torch.no_grad()
def test_where_it_is_read_it_does_what_it_does_everywhere(unet):
    """No modules are the same as strength 0, to the bit."""
    whole, keys = make_net(), make_net(sides="k")
    keys.load_state_dict({name: whole.state_dict()[name] for name in keys.state_dict()})
    alike = {
        "blocks": (make_net(blocks=("mid", "up")), hn.Strength(0.7, down=0.0)),
        "sides": (keys, hn.Strength(0.7, v=0.0)),
    }
    for limited, strength in alike.values():
        with hn.attach(unet, [(limited, 0.7)]):
            found = predict(unet)
        with hn.attach(unet, [(whole, strength)]):
            assert torch.equal(predict(unet), found)


@torch.no_grad()
def test_equal_modules_of_blocks_are_the_shared_ones(unet):
    shared = make_net()
    for factors in ({}, {"stack_projections": True}):
        own = make_unet().eval()
        own.load_state_dict(unet.state_dict())
        with hn.attach(own, [(shared, 0.7)], **factors):
            found = predict(own)
        with hn.attach(own, [(per_block(shared, same=True), 0.7)], **factors):
            torch.testing.assert_close(predict(own), found, rtol=0, atol=1e-6)
            assert torch.equal(predict(own), predict(own))
        with hn.attach(own, [(per_block(shared, same=False), 0.7)], **factors):
            assert not torch.allclose(predict(own), found, rtol=0, atol=1e-4)


def test_the_text_is_transformed_once_for_each_block_with_modules_of_its_own(unet):
    everywhere, own, calls = make_net(), per_block(make_net(), same=False), []
    restricted = make_net(blocks=("mid", "up.1"), sides="v")
    for net in (everywhere, own, restricted):
        for part in net.parts():
            if part.dim == CONTEXT_DIM:
                part.module.register_forward_hook(
                    lambda *_, name=f"{net is own} {part.side}": calls.append(name)
                )
    with hn.attach(unet, [(restricted, 1.0)]):
        predict(unet)
    assert calls == ["False v"]
    calls.clear()
    with hn.attach(unet, [(everywhere, 1.0), (own, 0.5)]):
        predict(unet)
    assert calls.count("True k") == calls.count("True v") == len(ALONE)


def test_gradients_are_those_of_every_layer_by_itself_with_and_without_checkpointing(unet):
    gradients = []
    for settings in ({"transform_once": False}, {}, {"gradient_checkpointing": True}):
        net = per_block(make_net(), same=False).train()
        denoiser = Denoiser(unet, net, **settings)
        noisy, timesteps, context = make_inputs()
        prediction, _ = denoiser(noisy, timesteps, Condition(context=context))
        prediction.square().sum().backward()
        denoiser.attachment.detach()
        denoiser.arrangement.remove()
        assert all(weight.grad is not None for weight in net.parameters())
        gradients.append(torch.cat([weight.grad.flatten() for weight in net.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_folding_and_the_lora_of_full_rank_follow_blocks_and_sides():
    """In float64, linear: what is attached, folded, and added as matrices is the same."""
    torch.manual_seed(0)
    unet = make_unet().double().eval().requires_grad_(False)
    shared = make_net(activation_func="linear")
    linear = [
        make_net(activation_func="linear", sides="v", blocks=("down.1", "up.0.1")),
        per_block(shared, same=False),
    ]
    for net in linear:
        stack = [(net.double(), 0.8)]
        plain = predict(unet)
        with hn.attach(unet, stack):
            attached = predict(unet)
        with hn.fold(unet, stack):
            torch.testing.assert_close(predict(unet), attached, rtol=1e-9, atol=1e-9)
        found = lora.of_matrices(unet, stack, rank=32)
        with found.added(unet):  # new biases are zero, so nothing of the values is lost
            torch.testing.assert_close(predict(unet), attached, rtol=1e-9, atol=1e-9)
        assert (attached - plain).abs().max() > 1e-3
    changed = {
        name.rpartition(".")[2] for name in lora.of_matrices(unet, [(linear[0], 1.0)], 4).factors
    }
    assert changed == {"to_v"}


def test_blocks_that_a_unet_lacks_are_named(unet):
    with pytest.raises(ModelError, match=r"has the blocks \('up\.7',\), the UNet .*'up\.1\.0'"):
        hn.attach(unet, [(make_net(blocks=("up.7",)), 1.0)])
    with pytest.warns(UserWarning, match=r"no attention in the blocks \['up\.7'\]"):
        hn.attach(unet, [(make_net(blocks=("up.7", "mid")), 1.0)]).detach()


def test_a_layer_alone_reads_what_its_place_reads(unet):
    """Called without the UNet around it, as some programs do."""
    net = per_block(make_net(), same=False)
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    assert isinstance(layer, Attention)
    hidden, text = torch.randn(1, 4, 32), torch.randn(1, 5, CONTEXT_DIM)
    with torch.no_grad(), hn.attach(unet, [(net, 1.0)]):
        alone = layer(hidden, text)
        pair = net.at("mid.0")
        assert pair is not None
        expected_k, expected_v = pair(text, text)
        query, key, value = layer.to_q(hidden), layer.to_k(expected_k), layer.to_v(expected_v)
        heads = [it.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for it in (query, key, value)]
        read = torch.nn.functional.scaled_dot_product_attention(*heads)
        expected_out = layer.to_out[0](read.transpose(1, 2).flatten(2))
    torch.testing.assert_close(alone, expected_out)


def test_contents_keep_where_a_net_is_read(tmp_path):
    net = per_block(make_net(), same=True)
    found = Contents.of(net).to(torch.bfloat16).with_dropout((0, 0.3, 0)).with_dropout()
    assert found.config.blocks == ALONE
    assert found.build().at("down.0.0") is not None
