"""Base models with linear hypernetworks in them, as folders and as single files."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hn
from hn.diffusion.single_file.names import UNET, UNetNames
from hn.diffusion.surgery.baking import layers_in
from tests import tiny
from tests.surgery import nets

STRENGTHS = (0.8, 0.4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two linear hypernetworks."""
    folder = tmp_path_factory.mktemp("nets")
    paths = [folder / f"net{seed}.pt" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        hn.save(nets.make(seed, layer_structure=(1, 2, 1)), path)
    return paths


def open_folder(path):
    return quiet(StableDiffusionPipeline.from_pretrained(path))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline):
    """A picture, in 0..1."""
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        "a star", width=16, height=16, num_inference_steps=3, generator=generator, output_type="np"
    ).images[0]


def psnr(first, second):
    return -10 * np.log10(np.square(first - second).mean())


@pytest.fixture(scope="module")
def truth(model, files):
    """The picture with both attached, and what the base model draws."""
    pipeline = open_folder(model)
    stack = [(hn.load(path), strength) for path, strength in zip(files, STRENGTHS, strict=True)]
    bare = draw(pipeline)
    with hn.attach(pipeline.unet, stack):
        picture = draw(pipeline)
    with hn.fold(pipeline, stack):
        assert psnr(draw(pipeline), picture) > 50
    return picture, bare


def test_a_baked_folder_draws_the_same(model, files, truth, tmp_path, run):
    (shutil.copytree(model, tmp_path / "base") / "v1.ckpt").write_bytes(b"not baked")
    result = run(
        "bake", tmp_path / "base", *files, "-o", tmp_path / "new" / "baked",
        "--strengths", *STRENGTHS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    error = float(result.stdout.split("the same but for ")[1].split()[0])
    assert error < 1e-12
    picture, bare = truth
    assert psnr(draw(open_folder(tmp_path / "new" / "baked")), picture) > 50
    assert psnr(bare, picture) < 35
    names = [
        {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        for folder in (tmp_path / "base", tmp_path / "new" / "baked")
    ]
    assert names[0] - names[1] == {"v1.ckpt"}  # which knows nothing of the hypernetworks
    assert not names[1] - names[0]
    with safe_open(
        tmp_path / "new/baked/unet/diffusion_pytorch_model.safetensors", "pt"
    ) as written:
        told = json.loads(written.metadata()["hypernetworks"])
    assert told[1] == {"name": "net1", "step": 0, "strength": "0.4"}


def test_a_single_file_of_a_folder_and_what_is_baked_into_it(model, files, truth, tmp_path, run):
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    # what is folded later reads first
    assert run("bake", model, files[1], "-o", once, "--strengths", STRENGTHS[1]).returncode == 0
    assert run("bake", once, files[0], "-o", twice, "--strengths", STRENGTHS[0]).returncode == 0
    pipeline = StableDiffusionPipeline.from_single_file(
        twice, config=str(model), local_files_only=True
    )
    assert psnr(draw(quiet(pipeline)), truth[0]) > 50
    before, after = load_file(once), load_file(twice)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".attn")[1][2:] for name in changed} == {
        "to_k.weight", "to_v.weight", "to_out.0.bias",
    }  # fmt: skip
    known = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight"
    assert known in changed
    refused = run("bake", twice, files[0], "-o", twice)
    assert (refused.returncode, "is there already" in refused.stderr) == (2, True)


def test_blocks_are_the_same_in_every_layout(model, tmp_path, run):
    """By the names of folders and by those of single files, which count all layers of a part."""
    net, nothing = tmp_path / "net.safetensors", tmp_path / "nothing.pt"
    hn.save(nets.make(3, blocks=("down.1", "up.0.1"), sides="v"), net)
    hn.save(hn.Hypernetwork.create((tiny.CONTEXT_DIM,)), nothing)
    base, of_folder, of_file = (tmp_path / f"{name}.safetensors" for name in ("base", "a", "b"))
    for source, added, output in (
        (model, nothing, base), (model, net, of_folder), (base, net, of_file),
    ):  # fmt: skip
        result = run("bake", source, added, "-o", output)
        assert result.returncode == 0, result.stderr
    before, *after = (load_file(path) for path in (base, of_folder, of_file))
    assert all(torch.equal(tensor, after[1][name]) for name, tensor in after[0].items())
    changed = {name for name in before if not torch.equal(before[name], after[0][name])}
    assert {name.removeprefix(UNET).partition(".transformer")[0] for name in changed} == {
        "input_blocks.3.1", "output_blocks.1.1",
    }  # fmt: skip
    assert {name.split(".attn")[1][2:] for name in changed} == {"to_v.weight", "to_out.0.bias"}


def test_half_precision_weights_stay_in_it_unless_asked(model, files, truth, tmp_path, run):
    base = shutil.copytree(model, tmp_path / "half")
    path = base / "unet/diffusion_pytorch_model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path, {"format": "pt"})
    for dtype, expected in ((None, torch.float16), ("fp32", torch.float32)):
        output = tmp_path / f"{dtype}.safetensors"
        asked = [] if dtype is None else ["--dtype", dtype]
        assert run("bake", base, files[0], "-o", output, *asked).returncode == 0
        for name, tensor in load_file(output).items():
            if name.startswith("model.diffusion_model."):
                changed = ".attn" in name and name.endswith(
                    ("to_k.weight", "to_v.weight", "0.bias")
                )
                assert tensor.dtype == (expected if changed else torch.float16), name


def test_what_cannot_be_baked_is_refused(model, files, tmp_path, run):
    curved = tmp_path / "curved.pt"
    hn.save(nets.make(2, activation_func="mish"), curved)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "v1.ckpt").write_bytes(b"PK")
    out = tmp_path / "out.safetensors"
    for arguments, code, reason in [
        ([model, curved, "-o", out], 4, "tools/export_lora.py"),
        ([model, files[0], "-o", tmp_path / "full"], 2, "not empty"),
        ([model, *files, "-o", out, "--strengths", 1, 1, 1], 2, "one for each of the 2 files"),
        ([tmp_path / "gone", files[0], "-o", out], 2, "neither a folder nor a file"),
        ([tmp_path / "other.safetensors", files[0], "-o", out], 4, "has no attention as"),
        ([tmp_path / "v1.ckpt", files[0], "-o", out], 4, "must be converted first"),
        ([tmp_path / "other.safetensors", files[0], "-o", tmp_path / "x"], 2, "must end with"),
    ]:
        result = run("bake", *arguments)
        assert (result.returncode, reason in result.stderr) == (code, True), result.stderr
    assert not out.exists()


def test_the_names_of_a_unet_are_those_that_diffusers_reads_back():
    """With blocks without attention, as Stable Diffusion 1 has them."""
    unet = tiny.make_unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
    )
    names = UNetNames.of(2, unet.state_dict())
    single = {UNET + names(name): t for name, t in unet.state_dict().items()}
    back = convert_ldm_unet_checkpoint(single, dict(unet.config))
    assert back.keys() == unet.state_dict().keys()
    assert all(torch.equal(tensor, back[name]) for name, tensor in unet.state_dict().items())


def test_attention_is_found_in_files_of_every_layout_and_nowhere_else():
    start = "model.diffusion_model."
    layers = {
        f"{start}input_blocks.4.1.transformer_blocks.1.attn2": "down.1.0",  # SDXL
        f"{start}middle_block.1.transformer_blocks.0.attn1": "mid.0",
        f"{start}output_blocks.3.1.transformer_blocks.0.attn1": "up.1.0",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2": "up.1.0",
    }
    others = [
        "first_stage_model.decoder.mid.attn_1.k",
        "control_model.input_blocks.1.1.transformer_blocks.0.attn1",
        f"{start}joint_blocks.0.attn1",
        "mid_block.attentions.0",  # the autoencoder's
    ]
    assert layers_in(f"{name}.to_k.weight" for name in [*layers, *others]) == layers
