"""Hypernetworks as LoRAs: exact where they can be, as far off as is said where they cannot."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

import hn
from hn.diffusion.surgery import lora
from tests import tiny
from tests.surgery import nets

FAST = ["--steps", 2, "--size", 16, 16]


@torch.no_grad()
def predict(unet):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 7, tiny.CONTEXT_DIM, generator=generator)
    return unet(latents, 3, context).sample


@pytest.mark.parametrize("kind", ["kohya", "diffusers"])
def test_a_linear_one_of_low_rank_is_exact_as_a_file_that_diffusers_loads(
    model, run, kind, tmp_path
):
    net, strength = nets.low_rank(4), 0.7
    hn.save(net, tmp_path / "low.pt")
    output = tmp_path / "lora.safetensors"
    result = run(
        "export_lora", tmp_path / "low.pt", "-o", output, "--base", model, "--strengths", strength,
        "--rank", 8, "--format", kind, *FAST,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "all together   0.00%" in result.stdout
    assert "pictures       0.0% of the change is missing" in result.stdout
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    before = predict(pipeline.unet)
    with hn.attach(pipeline.unet, [(net, strength)]):
        truth = predict(pipeline.unet)
    pipeline.load_lora_weights(output)
    assert (predict(pipeline.unet) - truth).norm() / truth.norm() < 1e-5
    assert (before - truth).norm() / truth.norm() > 1e-2


def test_a_bias_of_values_is_said_to_be_lost_and_one_of_keys_is_not(model):
    unet = tiny.make_unet()
    found = lora.of_matrices(unet, [(nets.make(0), 1.0)], 64)
    assert found.error < 1e-6
    assert min(share.error for share in found.biases.values()) > 0.01
    net = nets.make(0)
    with torch.no_grad():
        for dim in net.dims:
            for layer in net.module(dim, "v").linear:
                layer.bias.zero_()
    with hn.attach(unet, [(net, 1.0)]):
        truth = predict(unet)
    found = lora.of_matrices(unet, [(net, 1.0)], 64)
    assert all(share.error == 0 for share in found.biases.values())
    with found.added(unet):
        assert (predict(unet) - truth).norm() / truth.norm() < 1e-5


def test_layers_of_other_widths_are_left_alone():
    found = lora.of_matrices(tiny.make_unet(), [(nets.make(0, dims=(tiny.CONTEXT_DIM,)), 1.0)], 4)
    assert found.factors
    assert all(".attn2." in name for name in found.factors)


def test_what_is_not_linear_is_fitted_and_measured(model, pictures, run, tmp_path):
    net = nets.make(0, activation_func="mish")
    hn.save(net, tmp_path / "net.pt")
    output = tmp_path / "lora.safetensors"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(
        "\n".join(f"a {word} star" for word in ("red", "blue", "big", "white", "old"))
    )
    missing = {}
    for rank in (1, 16):
        result = run(
            "export_lora", tmp_path / "net.pt", "-o", output, "--base", model, "--rank", rank,
            "--prompts", prompts, "--validation_data_dir", pictures, "--overwrite", *FAST,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "of the gain is kept" in result.stdout
        missing[rank] = float(result.stdout.split("all together")[1].split("%")[0])
    assert missing[16] < missing[1] < 100
    assert all(
        len(tensor) == 16 for name, tensor in load_file(output).items() if "lora_down" in name
    )


def test_what_cannot_be_exported_is_refused(model, run, tmp_path):
    hn.save(nets.make(0, activation_func="mish"), tmp_path / "net.pt")
    out = tmp_path / "lora.safetensors"
    for arguments, code, reason in [
        (["-o", tmp_path / "x.pt"], 2, "must end with .safetensors"),
        (["-o", out, "--rank", 0], 2, "rank be at least 1"),
        (["-o", out, "--prompts", "one", "two"], 2, "at least 4"),
        (["-o", out, "--fit", "matrices"], 4, "--fit contexts"),
        (["-o", out, "--base", tmp_path], 4, "has no folder"),
        (["-o", out, "--steps", 0], 2, "steps must be"),
    ]:
        base = [] if "--base" in arguments else ["--base", model]
        result = run("export_lora", tmp_path / "net.pt", *arguments, *base)
        assert (result.returncode, reason in result.stderr) == (code, True), result.stderr
    assert not out.exists()
