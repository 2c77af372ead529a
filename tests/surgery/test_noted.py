"""What layers read of texts, noted once for all, is what each of them read."""

import torch

import hn
from hn.diffusion.attention import attention_layers
from hn.diffusion.surgery.probing import Probe
from hn.network.surgery.distilling import Lessons, Rows
from hn.network.surgery.regression import Moments
from tests import tiny
from tests.surgery import nets

PICTURES, TEXTS = "down_blocks.0.attentions.0.transformer_blocks.0.attn1", "attn2"


def forwards(unet):
    """Four, of two pairs of texts that share one."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(3, 7, tiny.CONTEXT_DIM, generator=generator)
    for rows, timestep in (((0, 1), 3), ((0, 1), 500), ((1, 2), 700), ((1, 1), 900)):
        latents = torch.randn(2, 4, 8, 8, generator=generator)
        unet(latents, timestep, texts[list(rows)])


@torch.no_grad()
def test_sums_over_texts_are_those_of_every_forward():
    unet, net = tiny.make_unet(), nets.make(0, activation_func="mish")
    name = PICTURES.replace("attn1", TEXTS)
    layer, expected = attention_layers(unet)[name], Moments(tiny.CONTEXT_DIM, torch.device("cpu"))

    def note(_, args, kwargs):
        text = kwargs["encoder_hidden_states"]
        for_k, for_v = hn.transform_context(text, [(net, 0.5)])
        query, key = layer.to_q(args[0]), layer.to_k(for_k)
        heads = [it.unflatten(-1, (layer.heads, -1)) for it in (query, key)]
        scores = torch.einsum("bnhc,bthc->bhnt", *heads) * layer.scale
        weights = scores.softmax(-1).mean((1, 2)).flatten()
        added = {"k": (for_k - text).flatten(0, 1), "v": (for_v - text).flatten(0, 1)}
        expected.add(text.flatten(0, 1), added, weights)

    probe = Probe(unet, [(net, 0.5)], Moments)
    with layer.register_forward_pre_hook(note, with_kwargs=True), probe.noting():
        forwards(unet)
    noted = probe.taken()
    assert set(noted) == set(attention_layers(unet))
    for side in "kv":
        weight = getattr(layer, f"to_{side}").weight
        ours, theirs = noted[name].of(side, weight), expected.of(side, weight)
        torch.testing.assert_close(ours.xx, theirs.xx, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ours.yx, theirs.yx, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ours.yy, theirs.yy, rtol=1e-5, atol=1e-7)
    assert noted[name] is noted[name]
    assert noted[PICTURES] is noted[PICTURES]


@torch.no_grad()
def test_lessons_are_of_all_texts():
    unet, net = tiny.make_unet(), nets.make(0, activation_func="mish")
    probe = Probe(unet, [(net, 1.0)], Rows)
    with probe.noting():
        forwards(unet)
    lessons = Lessons.of(probe.taken())
    x, added = lessons.side(tiny.CONTEXT_DIM, "v")
    assert len(x.unique(dim=0)) == 3 * 7
    torch.testing.assert_close(x + added, hn.transform_context(x, [(net, 1.0)])[1])
