"""What is remembered of a text while denoising: never anything else than what would be computed."""

import gc
import weakref

import pytest
import torch
from peft import LoraConfig

import hn
from tests.diffusion.test_attention import make_inputs, make_net, shared_unet, unet
from tests.operations import Operations
from tests.tiny import CONTEXT_DIM

__all__ = ["shared_unet", "unet"]  # fixtures


def count_calls(net, monkeypatch):
    """A list that grows with every text that is rewritten for keys; hooks would be noticed."""
    module, calls = net.module(CONTEXT_DIM, "k"), []
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda *args: calls.append(1) or forward(*args))
    return calls


def ask(unet, context, step=0):
    noisy, timesteps, _ = make_inputs(unet.dtype)
    return unet(noisy * (1 + step), timesteps - step, context, return_dict=False)[0]


def ask_anew(unet, stack, context, step=0):
    """What an attachment answers that has nothing to remember."""
    with hn.attach(unet, stack):
        return ask(unet, context, step)


@torch.no_grad()
def test_the_steps_of_a_denoising_share_what_is_made_of_the_text(unet, monkeypatch):
    net, context = make_net(), make_inputs()[2]
    expected = [ask_anew(unet, [(net, 0.7)], context, step) for step in range(3)]
    calls = count_calls(net, monkeypatch)
    with hn.attach(unet, [(net, 0.7)]):
        found = [ask(unet, context, step) for step in range(3)]
    assert len(calls) == 1
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(found[0], found[1])


@torch.no_grad()
def test_a_remembered_text_costs_less_than_no_hypernetwork(unet):
    """Keys and values of the text are there, and nothing of ours is computed."""
    net, context = make_net((CONTEXT_DIM,)), make_inputs()[2]
    with Operations() as plain:
        ask(unet, context)
    with hn.attach(unet, [(net, 0.7)]):
        ask(unet, context)
        with Operations() as remembered:
            ask(unet, context, step=1)
    assert remembered.counts < plain.counts  # a part of the same
    assert plain.counts["aten.mm.default"] - remembered.counts["aten.mm.default"] >= 10


@torch.no_grad()
def test_two_texts_in_turn_are_both_remembered_and_a_third_takes_the_place_of_the_oldest(
    unet, monkeypatch
):
    net = make_net()
    texts = [make_inputs()[2] + number for number in range(3)]
    expected = [ask_anew(unet, [(net, 1.0)], text) for text in texts]
    calls = count_calls(net, monkeypatch)
    with hn.attach(unet, [(net, 1.0)]):
        for number, so_far in ((0, 1), (1, 2), (0, 2), (1, 2), (2, 3), (1, 3), (0, 4)):
            assert torch.equal(ask(unet, texts[number]), expected[number])
            assert len(calls) == so_far


def edit_text(unet, net, attachment, context):
    context.mul_(2)


def edit_text_in_inference_mode(unet, net, attachment, context):
    with torch.inference_mode():
        context.mul_(2)


def change_strength(unet, net, attachment, context):
    attachment.stack[:] = [(net, 0.2)]


def change_strength_of_a_part(unet, net, attachment, context):
    attachment.stack[:] = [(net, hn.Strength(up=0.5))]


def edit_weights(unet, net, attachment, context):
    net.module(CONTEXT_DIM, "v").linear[0].weight.mul_(2)


def step_a_fused_optimizer(unet, net, attachment, context):
    """It changes weights without a trace in their versions."""
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    versions = [parameter._version for parameter in net.parameters()]
    optimizer.step()
    assert versions == [parameter._version for parameter in net.parameters()]


def edit_data_and_forget(unet, net, attachment, context):
    for parameter in net.parameters():
        parameter.data.mul_(2)
    attachment.forget()


def edit_the_unet(unet, net, attachment, context):
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    layer.to_k.weight.mul_(2)


def replace_a_layer(unet, net, attachment, context):
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    layer.to_v = torch.nn.Linear(CONTEXT_DIM, layer.to_v.out_features, bias=False)


def take_another_net(unet, net, attachment, context):
    attachment.stack[:] = [(make_net(seed=5), 0.7)]


def let_it_train(unet, net, attachment, context):
    net.train()  # strength is ignored


CHANGES = [
    edit_text,
    edit_text_in_inference_mode,
    change_strength,
    change_strength_of_a_part,
    edit_weights,
    step_a_fused_optimizer,
    edit_data_and_forget,
    edit_the_unet,
    replace_a_layer,
    take_another_net,
    let_it_train,
]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_change_of_any_ingredient_is_seen(unet, change):
    own, net, context = unet, make_net(), make_inputs()[2]
    if change in (edit_the_unet, replace_a_layer):
        own = make_own()
    attachment = hn.attach(own, [(net, 0.7)])
    before = ask(own, context)
    change(own, net, attachment, context)
    after = ask(own, context)
    attachment.detach()
    assert torch.equal(after, ask_anew(own, attachment.stack, context))
    assert not torch.equal(after, before)


def make_own():
    """A UNet that may be spoilt."""
    from tests.tiny import make_unet

    torch.manual_seed(0)
    return make_unet().eval().requires_grad_(False)


@torch.no_grad()
def test_the_precision_is_an_ingredient(unet):
    net, context = make_net(), make_inputs()[2]
    with hn.attach(unet, [(net, 0.7)]):
        ask(unet, context)
        with torch.autocast("cpu", torch.bfloat16):
            found = ask(unet, context)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, ask_anew(unet, [(net, 0.7)], context))


@torch.no_grad()
def test_a_lora_that_comes_is_scaled_and_goes_is_seen():
    own, net, context = make_own(), make_net(), make_inputs()[2]
    config = LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
    answers = []

    def look():
        answers.append(ask(own, context))
        assert torch.equal(answers[-1], ask(own, context))

    with hn.attach(own, [(net, 0.7)]):
        look()
        own.add_adapter(config, "lora")
        look()
        own.set_adapters(["lora"], [0.3])
        look()
        own.delete_adapters("lora")
        look()
    assert len({answer.sum().item() for answer in answers}) == 3
    assert torch.equal(answers[0], answers[-1])


@pytest.mark.parametrize("kind", ["inference tensor", "gradients", "hook", "training"])
def test_what_is_not_known_well_enough_is_made_anew(unet, monkeypatch, kind):
    net, (*_, context) = make_net(), make_inputs()
    calls = count_calls(net, monkeypatch)
    if kind == "inference tensor":
        with torch.inference_mode():
            context = context + 0
    if kind == "hook":
        net.module(CONTEXT_DIM, "v").linear.register_forward_hook(lambda *_: None)
    net.train(kind == "training")
    with hn.attach(unet, [(net, 1.0)]) as attachment, torch.set_grad_enabled(kind == "gradients"):
        ask(unet, context)
        ask(unet, context)
        assert not attachment._recall._kept
    assert len(calls) == 2


@torch.no_grad()
def test_detaching_lets_go_of_the_text_and_what_was_made_of_it(unet):
    context = make_inputs()[2]
    attachment = hn.attach(unet, [(make_net(), 1.0)])
    ask(unet, context)
    ((_, reading),) = attachment._recall._kept
    held = [weakref.ref(tensor) for pair in reading.projected.values() for tensor in pair]
    held.append(weakref.ref(context))
    del context, reading, _
    assert held[-1]() is not None
    attachment.detach()
    assert [one() for one in held] == [None] * len(held)


@torch.no_grad()
def test_the_step_of_an_optimizer_is_seen_by_all_that_remember():
    net, context, attachments = make_net(), make_inputs()[2], []
    for _ in range(2):
        own = make_own()
        attachments.append(hn.attach(own, [(net, 1.0)]))
        ask(own, context)
    assert all(attachment._recall._kept for attachment in attachments)
    step_a_fused_optimizer(None, net, None, None)
    assert not any(attachment._recall._kept for attachment in attachments)


@torch.no_grad()
def test_an_attachment_that_is_lost_is_gone():
    own = make_own()
    lost = weakref.ref(hn.attach(own, [(make_net(), 1.0)])._recall)
    ask(own, make_inputs()[2])
    assert lost() is not None
    del own
    gc.collect()
    assert lost() is None
