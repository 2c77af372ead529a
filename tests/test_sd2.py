"""A tiny base model shaped as Stable Diffusion 2, through everything."""

import json
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor

import hn
from hn.diffusion.attending.kernels import choose_kernel
from hn.diffusion.attending.processor import HypernetworkAttention
from hn.diffusion.base_model import BaseModel
from hn.network.surgery import resizing
from tests import runs, tiny
from tests.surgery import nets

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return tiny.make_model_2(tmp_path_factory.mktemp("two") / "base")


@pytest.fixture(scope="module")
def trained(two, pictures, tmp_path_factory):
    """A run with everything, stopped at its last checkpoint but one and gone on with."""
    folder = tmp_path_factory.mktemp("trained")
    flags = runs.settings(
        two, pictures, folder, max_train_steps=4, checkpointing_steps=2, validation_split=2,
        validation_prompt=["a star"], validation_inference_steps=2, activation_func="linear",
        snr_gamma=5,
    )  # fmt: skip
    return runs.train_and_resume(flags, folder)


def test_it_trains_draws_measures_and_resumes_to_the_bit(trained):
    whole, resumed = trained
    assert runs.same_tensors(whole / "run.pt", resumed / "run.pt")
    assert hn.load(whole / "run.pt").dims == tiny.DIMS
    assert (whole / "previews/step-00000004.png").is_file()
    rows = [row for row in runs.metrics(whole) if "heldout_loss" in row]
    assert rows[-1]["heldout_loss"] != rows[-1]["heldout_base_loss"]


@pytest.mark.usefixtures("fresh_accelerate")
def test_its_checkpoints_are_evaluated(trained, run, tmp_path):
    few = ("--samples", 4, "--strengths", 1, "--prompts", "a star", "-o", tmp_path)
    done = run("evaluate", trained[0], *few)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["step"] for row in report["checkpoints"]] == [2, 4]


def test_what_was_trained_is_baked(two, trained, run, tmp_path):
    baked = tmp_path / "baked"
    done = run("bake", two, trained[0] / "run.pt", "-o", baked)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("same but for ")[1].split()[0]) < 1e-12
    unets = [UNet2DConditionModel.from_pretrained(it, subfolder="unet") for it in (two, baked)]
    assert unets[1].config["upcast_attention"]
    with hn.attach(unets[0], [(hn.load(trained[0] / "run.pt"), 1.0)]):
        attached = predict(unets[0])
    torch.testing.assert_close(predict(unets[1]), attached, rtol=1e-4, atol=1e-5)


def test_it_is_exported_as_a_lora_that_diffusers_loads(two, run, tmp_path):
    net = resizing.resize(nets.make(0), (1, 0.25, 1)).net
    with torch.no_grad():
        for dim in net.dims:  # of what values get, a LoRA has no bias
            net.module(dim, "v").linear[1].bias.zero_()
    hn.save(net, tmp_path / "low.pt")
    few = ("--steps", 2, "--size", 16, 16, "--rank", 8)
    output = tmp_path / "lora.safetensors"
    done = run("export_lora", tmp_path / "low.pt", "-o", output, "--base", two, *few)
    assert done.returncode == 0, done.stderr
    pipe: Any = StableDiffusionPipeline.from_pretrained(two)
    with hn.attach(pipe.unet, [(net, 1.0)]):
        truth = predict(pipe.unet)
    pipe.load_lora_weights(output)
    assert (predict(pipe.unet) - truth).norm() / truth.norm() < 1e-5


def test_prompts_are_those_of_diffusers(two):
    """Through the last layer that is there, with the final norm."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(two)
    expected = pipe.encode_prompt("a red star", "cpu", 1, False)[0]
    (found,) = BaseModel.load(str(two)).encode_prompts(["a red star"])
    torch.testing.assert_close(found.context, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def predict(unet: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=draw).to(unet.dtype)
    context = torch.randn(2, 7, tiny.CONTEXT_DIM, generator=draw).to(unet.dtype)
    return unet(noisy, 3, context).sample


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kernel", ["its own", "sdpa"])
def test_scores_beyond_half_precision_are_attended_as_diffusers_does_upcast(dtype, kernel):
    """Where its plain processor, and it alone knows upcasting, gives NaN without."""
    torch.manual_seed(0)
    layer = Attention(32, 24, heads=4, dim_head=8, upcast_attention=True).to(dtype)
    x, context = torch.randn(2, 9, 32).to(dtype), torch.randn(2, 7, 24).to(dtype)
    layer.to_q.weight.mul_(200)
    layer.to_k.weight.mul_(2000)
    layer.set_processor(AttnProcessor())
    expected = layer(x, context)
    assert expected.isfinite().all()
    attend = choose_kernel(layer.processor, None if kernel == "its own" else "sdpa")
    layer.set_processor(HypernetworkAttention([], attend, "mid_block", "mid"))
    torch.testing.assert_close(layer(x, context), expected, rtol=0.02, atol=0.01)
    if kernel == "its own" and dtype == torch.float16:
        layer.upcast_attention = False
        assert not layer(x, context).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES)
def test_a_whole_unet_is_finite_where_it_would_not_be(two, dtype):
    """As trained and as used, against diffusers' own upcasting processors."""
    unet = UNet2DConditionModel.from_pretrained(two, subfolder="unet", torch_dtype=dtype)
    for layer in unet.modules():
        if isinstance(layer, Attention):
            layer.to_q.weight.mul_(3e3)
    unet.set_attn_processor(AttnProcessor())
    expected = predict(unet)
    assert expected.isfinite().all()
    still = hn.Hypernetwork.create(tiny.DIMS)  # starts as the base model
    with hn.attach(unet, [(still, 1.0)]):
        assert torch.equal(predict(unet), expected)
    with hn.attach(unet, [(still, 1.0)], kernel="sdpa"):  # rounds otherwise
        assert predict(unet).isfinite().all()
