"""The benchmark: what its contenders compute, and what it refuses."""

import re
from dataclasses import replace

import pytest
import torch

from hn.benchmark import contenders, rows
from hn.benchmark.benchmark import measure
from hn.benchmark.contenders import CONTENDERS
from hn.benchmark.counts import calculate, hold, unet_bytes
from hn.benchmark.ops import Ops
from hn.benchmark.scene import Scene, build_scene
from hn.errors import OptionError
from tests import full_size


def _scene(model: str, **changes) -> Scene:
    settings = {"resolution": None, "batch": 1, "precision": "fp32", "widths": "all"}
    return build_scene(model, **{**settings, "device": "cpu", **changes})


def _counted(model: str, **changes) -> Scene:
    """A scene in which nothing is computed."""
    return replace(_scene(model, **changes), device="meta")


def _gradient(name: str, scene: Scene) -> torch.Tensor:
    contender = CONTENDERS[name](scene)
    contender.backward(contender.problem(0))
    return contender.gradient()


@pytest.mark.parametrize(("model", "resolution"), [("tiny", 32), ("tiny-xl", 64)])
def test_the_web_uis_step_has_our_gradients(model, resolution):
    """Of more than one token: a softmax over one has gradients of rounding alone."""
    scene = _scene(model, resolution=resolution)
    reference = _gradient("webui", scene)
    for name in CONTENDERS:
        if name.startswith(("hn", "webui-")) and name != "hn-compiled":
            difference = (_gradient(name, scene) - reference).norm() / reference.norm()
            assert difference <= 1e-5, name


@pytest.mark.slow  # a compiler takes its time
def test_a_compiled_row_says_whether_its_blocks_were_used():
    found = measure(_scene("tiny", resolution=32), ["webui", "hn", "hn-compiled"], 1).rows
    _, ours, compiled = found
    verdict = r"hn-compiled: (not used: its gradient is off|used: gradients differ) by"
    assert re.search(verdict, rows.table(found).splitlines()[-1])
    assert compiled.gradient_difference <= 1e-3
    assert (compiled.ops, compiled.flops_per_image) == (ours.ops, ours.flops_per_image)


def test_gradients_of_the_unet_are_computed_where_they_are_thrown_away():
    contender = CONTENDERS["webui-unet-grads"](_scene("tiny", resolution=32))
    contender(0)
    assert len(contender.taught) > len(contender.parameters)
    idle = contender.taught[len(contender.parameters) :]
    assert all(parameter.grad is not None for parameter in idle)


def test_a_step_changes_what_is_trained_and_leaves_the_common_unet():
    scene = _scene("tiny", resolution=32)
    before = {name: tensor.clone() for name, tensor in scene.weights.items()}
    for name in ("webui", "lora", "hn"):
        contender = CONTENDERS[name](scene)
        weights = [parameter.detach().clone() for parameter in contender.parameters]
        contender(0)
        pairs = zip(weights, contender.parameters, strict=True)
        assert any(not torch.equal(old, new) for old, new in pairs), name
    assert all(torch.equal(scene.weights[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("frozen_aware", [False, True])
@pytest.mark.parametrize(("widths", "most"), [("text", 3500), ("all", 4800)])
def test_operations_of_a_step_of_stable_diffusion_1(widths, most, frozen_aware):
    contender = contenders.own(_scene("narrow", widths=widths), frozen_aware=frozen_aware)
    problem = contender.problem(0)
    with Ops() as ops:
        contender.backward(problem)
    assert ops.count <= most


@pytest.mark.slow
def test_activations_of_stable_diffusion_1_take_a_third_of_the_web_uis():
    """At 512 pixels in bfloat16, every width trained."""
    scene = _counted("sd15", precision="bf16")
    peaks = {
        name: hold(CONTENDERS[name](scene)).peak
        for name in ("webui", "hn", "hn-frozen-aware", "hn-both")
    }
    assert peaks["hn"] <= 0.51 * peaks["webui"]
    assert peaks["hn-frozen-aware"] <= 0.37 * peaks["webui"]
    assert peaks["hn-both"] <= 0.12 * peaks["webui"]


def test_operations_on_numbers_are_those_of_products_and_convolutions():
    """What transforming the text in every layer adds is known."""
    scene = _counted("tiny", widths="text")
    width, tokens, layers = 96, scene.shape.tokens, 7
    product = 2 * tokens * width * 2 * width  # one layer of one module
    once, each = (calculate(CONTENDERS[name](scene)) for name in ("hn", "hn-per-layer"))
    # Of two modules: 2 layers, the gradients of their weights, and of what the second reads.
    assert each - once == (layers - 1) * 2 * (2 + 2 + 1) * product


def test_stable_diffusion_xl_is_the_published_one():
    scene = _counted("sdxl")
    assert unet_bytes(scene) == 4 * full_size.XL_PARAMETERS
    assert scene.dims == full_size.XL_DIMS
    assert scene.condition.pooled is not None
    assert scene.condition.pooled.shape == (1, 1280)


def test_diffusers_script_encodes_with_models_of_sds_size_in_every_step():
    scene = _counted("tiny")
    stock, lora = (CONTENDERS[name](scene) for name in ("diffusers-lora", "lora-rank-4"))
    autoencoder = 83_653_863  # parameters, as SD 1's has
    assert autoencoder < sum(p.numel() for p in stock.frozen) < 1.1 * autoencoder
    assert len(stock.parameters) == len(lora.parameters)
    assert calculate(stock) > 2 * calculate(lora)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 100}, "multiple of 16 for tiny; found 100"),
        ({"resolution": 0}, "multiple of 16"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"device": "meta"}, "one of cpu.*'meta'"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        _scene("tiny", **changes)
