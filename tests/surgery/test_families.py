"""Ways out of the larger base models: Stable Diffusion 2, XL, its refiner, and inpainting."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

import hn
from hn.diffusion.attention import context_dims
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import predict
from hn.diffusion.single_file import reading
from hn.diffusion.surgery import lora, lora_file
from hn.diffusion.surgery.baking import bake
from tests import single_files, tiny
from tests.surgery import nets

FOLDED = ("to_k.weight", "to_v.weight", "to_out.0.bias")


@torch.no_grad()
def answer(unet):
    """A prediction, with whatever the UNet wants to be told."""
    draw = torch.Generator().manual_seed(0)
    config = unet.config
    pooled = numbers = None
    if config["addition_embed_type"]:
        pooled = torch.randn(2, single_files.POOLED, generator=draw)
        width = config["projection_class_embeddings_input_dim"] - single_files.POOLED
        numbers = torch.full((2, width // single_files.TIME_DIM), 64.0)
    context = torch.randn(2, 7, config["cross_attention_dim"], generator=draw)
    noisy = torch.randn(2, config["in_channels"], 8, 8, generator=draw)
    condition = Condition(context=context, pooled=pooled, time_ids=numbers)
    return predict(unet, noisy, torch.tensor([5, 900]), condition)


def distance(one, other):
    return float((one - other).norm() / other.norm())


def unet_of(folder):
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet")


@pytest.mark.parametrize("kind", ["2", "refiner", "xl inpainting"])
def test_what_is_baked_answers_as_what_is_attached(families, tmp_path, kind):
    base = families.get(kind) or single_files.make_xl(tmp_path / "nine", in_channels=9)
    unet = unet_of(base)
    stack = [(nets.make(seed, context_dims(unet)), 0.5) for seed in (0, 1)]
    folder, file, again = (tmp_path / name for name in ("out", "out.safetensors", "2.safetensors"))
    plain = single_files.as_file(shutil.copytree(base, tmp_path / "base"))
    errors = [
        bake(source, stack, output).algebra
        for source, output in ((base, folder), (base, file), (plain, again))
    ]
    assert max(errors) <= 1e-12
    before = answer(unet)
    with hn.attach(unet, stack):
        truth = answer(unet)
    assert distance(answer(unet_of(folder)), truth) < 1e-5
    assert distance(before, truth) > 1e-2
    parts = reading.load(file, quantisation="none", dtype=torch.float32, prediction="epsilon")
    assert torch.equal(answer(parts.unet.eval()), answer(unet_of(folder)))
    one, other, old = load_file(file), load_file(again), load_file(plain)
    assert one.keys() == other.keys() == old.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    changed = {name for name in one if not torch.equal(one[name], old[name])}
    expected = {name for name in one if ".attn" in name and name.endswith(FOLDED)}
    assert changed == {name for name in expected if name.startswith("model.diffusion_model.")}


@pytest.mark.parametrize("kind", ["kohya", "diffusers"])
def test_a_linear_one_as_a_lora_of_stable_diffusion_xl(families, tmp_path, kind):
    pipeline = StableDiffusionXLPipeline.from_pretrained(families["xl"])
    net = nets.low_rank(4, context_dims(pipeline.unet))
    found = lora.of_matrices(pipeline.unet, [(net, 0.7)], 12)
    path = tmp_path / "lora.safetensors"
    lora_file.write(found, path, kind, 12, [(net, 0.7)], pipeline.unet)
    before = answer(pipeline.unet)
    with hn.attach(pipeline.unet, [(net, 0.7)]):
        truth = answer(pipeline.unet)
    pipeline.load_lora_weights(path)
    assert distance(answer(pipeline.unet), truth) < 1e-5
    assert distance(before, truth) > 1e-2
    if kind == "kohya":
        with safe_open(path, "pt") as file:
            assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"


WORDS = ("a red star", "a blue heart", "a big cross", "a white circle", "an old square")
FAST = ["--prompts", *WORDS, "--steps", 2, "--size", 64, 64]


def test_what_is_not_linear_is_fitted_on_what_stable_diffusion_xl_reads(
    families, pictures, run, tmp_path
):
    base = single_files.as_file(families["xl"])
    dims = context_dims(unet_of(families["xl"]))
    hn.save(nets.make(0, dims, activation_func="mish"), tmp_path / "net.pt")
    result = run(
        "export_lora", tmp_path / "net.pt", "-o", tmp_path / "lora.safetensors", "--base", base,
        "--rank", 32, "--validation_data_dir", pictures, *FAST,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "of the gain is kept" in result.stdout
    of_text = next(it for it in result.stdout.splitlines() if it.startswith(f"width {max(dims)}"))
    assert float(of_text.split("of keys ")[1].split("%")[0]) < 40
    names = load_file(tmp_path / "lora.safetensors")
    assert any(name.startswith("lora_unet_output_blocks_") for name in names)


def test_one_for_the_refiner_is_distilled(families, run, tmp_path):
    net = nets.make(0, (64, 128), activation_func="gelu")
    hn.save(net, tmp_path / "gelu.pt")
    output = tmp_path / "linear.pt"
    result = run(
        "distil", tmp_path / "gelu.pt", "-o", output, "--base", families["refiner"],
        "--activation_func", "linear", *FAST,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    errors = [it.split("%") for it in result.stdout.splitlines() if it.startswith("width")]
    assert len(errors) == 4
    assert all(float(it[0].split()[-1]) > float(it[1].split()[-1]) for it in errors)
    assert hn.load(output).dims == (64, 128)


def test_layers_are_called_as_programs_look_for_them():
    """The web UI and ComfyUI look for the original names of XL, for diffusers' of 1 and 2."""
    known = {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k": "input_blocks.4.1",
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_v": "input_blocks.8.1",
        "mid_block.attentions.0.transformer_blocks.3.attn2.to_k": "middle_block.1",
        "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_k": "output_blocks.2.1",
        "up_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v": "output_blocks.3.1",
    }
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    added |= {"projection_class_embeddings_input_dim": 56}
    with torch.device("meta"):
        large, small = (tiny.make_unet(layers_per_block=2, **it) for it in (added, {}))
    called = lora_file.kohya_names(large)
    for name, start in known.items():
        assert called(name) == f"{start}.transformer_blocks{name.split('.transformer_blocks')[1]}"
        assert lora_file.kohya_names(small)(name) == name
