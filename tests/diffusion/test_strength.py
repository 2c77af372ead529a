"""Strengths that differ between sides, parts of the UNet and moments."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention

import hn
from hn.diffusion.attending.strength import measure_progress
from hn.errors import OptionError
from tests.diffusion.test_attention import make_inputs, make_net, predict
from tests.tiny import CONTEXT_DIM, make_unet


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return make_unet().eval().requires_grad_(False)


@torch.no_grad()
def read_by(unet, strength, net=None, **settings):
    """What each text layer's `to_k` and `to_v` read beyond the text: the largest change."""
    seen, handles = {}, []
    text = make_inputs()[2]
    for name, layer in unet.named_modules():
        if isinstance(layer, Attention) and layer.to_k.in_features == CONTEXT_DIM:
            for side in "kv":
                key = name.split("_")[0], side
                handles.append(
                    getattr(layer, f"to_{side}").register_forward_pre_hook(
                        lambda _, args, key=key: seen.setdefault(key, []).append(
                            float((args[0] - text).abs().max())
                        )
                    )
                )
    with hn.attach(unet, [(net or make_net(), strength)], **settings):
        predict(unet)
    for handle in handles:
        handle.remove()
    assert all(len(set(values)) == 1 for values in seen.values())
    return {key: values[0] for key, values in seen.items()}


FULL = [
    ({"k": 0.0}, {"k"}),
    ({"v": 0.0}, {"v"}),
    ({"down": 0.0}, {"down"}),
    ({"mid": 0.0, "up": 0.0}, {"mid", "up"}),
    ({"value": 0.0}, {"k", "v"}),
]


@pytest.mark.parametrize(("changes", "silent"), FULL)
@pytest.mark.parametrize("transform_once", [True, False])
def test_each_factor_is_of_its_own_place(unet, changes, silent, transform_once):
    full = read_by(unet, 1.0)
    found = read_by(unet, hn.Strength(**changes), transform_once=transform_once)
    assert len(found) == 6
    for place, change in found.items():
        assert change == pytest.approx(0 if silent & {*place} else full[place])
    assert min(full.values()) > 0.1


def test_factors_multiply(unet):
    full = read_by(unet, 1.0)
    found = read_by(unet, hn.Strength(0.5, k=2.0, up=-0.25))
    assert found["down", "k"] == pytest.approx(full["down", "k"])
    assert found["up", "v"] == pytest.approx(0.125 * full["up", "v"])


@torch.no_grad()
def test_self_attention_has_the_strength_of_its_place(unet):
    """A hypernetwork of self-attention widths alone, in the decoder alone, changes its layers."""
    net = make_net((16, 32))
    plain = predict(unet)
    with hn.attach(unet, [(net, hn.Strength(down=0.0, mid=0.0, up=0.0))]):
        assert torch.equal(predict(unet), plain)
    with hn.attach(unet, [(net, hn.Strength(down=0.0, mid=0.0))]):
        up_alone = predict(unet)
    with hn.attach(unet, [(net, 1.0)]):
        assert not torch.equal(predict(unet), up_alone)
    assert not torch.equal(up_alone, plain)


@torch.no_grad()
def test_a_plain_strength_is_transformed_once_and_parts_that_differ_three_times(unet):
    net, calls = make_net((CONTEXT_DIM,)), []
    net.module(CONTEXT_DIM, "k").register_forward_hook(lambda *_: calls.append(1))
    strengths = [1.0, hn.Strength(0.5, k=0.1), hn.Strength(up=0.5)]
    for strength, expected in zip(strengths, (1, 1, 3), strict=True):
        calls.clear()
        with hn.attach(unet, [(net, strength)]):
            predict(unet)
        assert len(calls) == expected


@torch.no_grad()
def test_training_ignores_strength(unet):
    net = make_net().train()
    with hn.attach(unet, [(net, 1.0)]):
        full = predict(unet)
    with hn.attach(unet, [(net, hn.Strength(0.1, k=0.0, up=0.0))]):
        assert torch.equal(predict(unet), full)


def test_schedules_are_straight_lines_between_points():
    points = ((0.2, -1.0), (0.5, 1.0), (0.5, 0.25), (1.0, 0.75))
    progress = np.linspace(0, 1, 41, dtype=np.float32)
    strength = hn.Strength(schedule=points)
    found = [float(strength.sides("mid", torch.tensor(p))[0]) for p in progress]
    before, after = zip(*points[:2], strict=True), zip(*points[2:], strict=True)
    expected = np.where(progress < 0.5, np.interp(progress, *before), np.interp(progress, *after))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("timesteps", [[999, 666, 333, 0], [999.0, 700.5, 30.25, 1.5]])
def test_progress_counts_steps(timesteps):
    table = torch.tensor(timesteps)
    found = [float(measure_progress(now, table)) for now in table]
    np.testing.assert_allclose(found, [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    assert float(measure_progress(table[0], table[:1])) == 0


def test_a_schedule_needs_the_timesteps(unet):
    fade = hn.Strength(schedule=((0.0, 0.0), (1.0, 1.0)))
    with pytest.raises(OptionError, match="timesteps"):
        hn.attach(unet, [(make_net(), fade)])
    change = read_by(unet, fade, timesteps=lambda: torch.tensor([999, 10, 0]))  # timestep 10 of 3
    full = read_by(unet, 1.0)
    assert change["mid", "k"] == pytest.approx(0.5 * full["mid", "k"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": float("inf")}, r"Strength.value must be a finite number.*found inf"),
        ({"up": "1"}, r"Strength.up must be a finite number.*found '1'"),
        ({"k": True}, r"Strength.k must be"),
        ({"schedule": [0.0, 1.0]}, r"must be points"),
        ({"schedule": ((0.0,),)}, r"must be points"),
        ({"schedule": ((0.5, 1.0), (0.0, 1.0))}, r"must rise from 0 to 1; found \(0.5, 0.0\)"),
        ({"schedule": ((0.0, 1.0), (2.0, 1.0))}, r"must rise from 0 to 1"),
        ({"schedule": ((0.0, float("nan")),)}, r"each number of Strength.schedule"),
    ],
)
def test_what_is_no_strength_is_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        hn.Strength(**changes)
