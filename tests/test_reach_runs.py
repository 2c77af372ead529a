"""Runs that train one side, some blocks, or each block by itself."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import hn
from hn import cli
from hn.diffusion.base_model import BaseModel
from hn.errors import OptionError
from hn.network import files
from hn.network.contents import Contents
from tests import runs
from tests.diffusion.test_attention import predict

PER_BLOCK = {
    "per_block": True,
    "train_blocks": ["down.1", "mid", "up.0.1"],
    "width_learning_rates": ["24=0.5"],
    "residual_penalty": 0.1,
    "use_ema": True,
    "validation_split": 2,
    "validation_steps": 0,
    "validation_prompt": ["a star"],
    "validation_strengths": [1],
    "validation_inference_steps": 1,
    "checkpointing_steps": 2,
    "gradient_checkpointing": True,
    "dropout_structure": (0, 0.3, 0),
}
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def per_block(model, pictures, tmp_path_factory):
    """A run that trains three blocks by themselves, with all that looks at them."""
    folder = tmp_path_factory.mktemp("per_block")
    runs.forget_accelerate()
    assert runs.train_here(runs.settings(model, pictures, folder, **PER_BLOCK)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def unet(model):
    return BaseModel.load(str(model)).unet


@torch.no_grad()
def prediction(unet, path):
    with hn.attach(unet, [(hn.load(path), 1.0)]):
        return predict(unet)


def test_each_block_learns_by_itself(per_block):
    net = hn.load(per_block / "run.safetensors")
    assert net.config.blocks == ("down.1", "mid", "up.0.1")
    assert net.config.block_dims == ((24, 32),) * 3
    assert {part.name for part in net.parts() if part.dim == 24 and part.side == "k"} == {
        "down_1.24.k", "mid.24.k", "up_0_1.24.k",
    }  # fmt: skip
    lasts = [part.module.linear[-1].weight for part in net.parts()]
    assert all(weight.abs().max() > 0 for weight in lasts)  # they were zero
    assert not torch.equal(lasts[0], lasts[2])
    assert not list(per_block.rglob("*.pt"))
    reported = {name for row in runs.metrics(per_block) for name in row}
    assert {"residual_ratio/up_0_1.24.v", "heldout_loss"} <= reported


def test_it_resumes_to_the_bit(model, pictures, per_block, tmp_path):
    flags = runs.settings(model, pictures, tmp_path, **PER_BLOCK | {"max_train_steps": 4})
    assert runs.train_here(flags) == 0
    runs.forget_accelerate()
    resumed = {**PER_BLOCK, "resume_from_checkpoint": "latest"}
    assert runs.train_here(runs.settings(model, pictures, tmp_path, **resumed)) == 0
    assert runs.losses(tmp_path / "run") == runs.losses(per_block)
    for name in ("run", "run-ema"):
        ours, theirs = (it / f"{name}.safetensors" for it in (tmp_path / "run", per_block))
        assert runs.same_tensors(ours, theirs)
        assert files.read(ours).config == files.read(theirs).config


def test_what_other_blocks_train_is_another_run(model, pictures, per_block, tmp_path, capsys):
    changes = PER_BLOCK | {"train_blocks": ["mid"], "resume_from_checkpoint": "latest"}
    (tmp_path / "run").symlink_to(per_block)
    assert runs.train_here(runs.settings(model, pictures, tmp_path, **changes)) == 2
    assert "structure: " in capsys.readouterr().err


def test_tools_know_it(run, model, per_block, tmp_path):
    path = per_block / "run.safetensors"
    shown = run("inspect_hypernetwork", path).stdout
    assert "mish, in down.1, mid, up.0.1, each with its own" in shown
    assert shown.count("up.0.1\n") >= 4
    refused = run("convert", path, "-o", tmp_path / "net.pt")
    assert refused.returncode == 4
    assert "only down.1, mid, up.0.1 read through it" in refused.stderr
    mean = run("blend", per_block / "checkpoints", "-o", tmp_path / "mean.safetensors")
    assert mean.returncode == 0, mean.stderr
    assert hn.load(tmp_path / "mean.safetensors").config.blocks == ("down.1", "mid", "up.0.1")
    added = run("blend", path, path, "-o", tmp_path / "sum.safetensors", "--how", "sum")
    assert (added.returncode, "only down.1, mid" in added.stderr) == (4, True)


@pytest.mark.slow
def test_it_is_evaluated_exported_and_distilled(run, model, pictures, per_block, tmp_path):
    few = ["--samples", 4, "--strengths", 1, "--prompts", "a star"]
    assert run("evaluate", per_block, *few).returncode == 0
    path, base = per_block / "run.safetensors", ["--base", model, "--steps", 2]
    exported = run("export_lora", path, "-o", tmp_path / "lora.safetensors", "--rank", 4, *base)
    assert exported.returncode == 0, exported.stderr
    layers = {name.partition("_attn")[0] for name in load_file(tmp_path / "lora.safetensors")}
    assert {re.sub("_transformer.*", "", name) for name in layers} == {
        f"lora_unet_{block}_attentions_{attention}"
        for block, attention in (("down_blocks_1", 0), ("mid_block", 0), ("up_blocks_0", 1))
    }
    distilled = run("distil", path, "-o", tmp_path / "all.pt", "--fit_steps", 20, *base)
    assert distilled.returncode == 0, distilled.stderr
    assert hn.load(tmp_path / "all.pt").config.is_everywhere


@pytest.mark.slow
def test_two_processes_train_blocks_as_one_does(model, pictures, tmp_path):
    """Every weight gets a gradient, or the processes would wait for it."""
    changes = PER_BLOCK | {"dropout_structure": None, "validation_split": None}
    for name, launcher, accumulation in (("one", runs.PYTHON, 2), ("two", runs.TORCHRUN, 1)):
        flags = runs.settings(
            model,
            pictures,
            tmp_path,
            name=name,
            gradient_accumulation_steps=accumulation,
            **changes,
        )
        assert runs.run(launcher, flags).returncode == 0
    one, two = (tmp_path / f"{name}/{name}.safetensors" for name in ("one", "two"))
    assert runs.largest_difference(one, two, without=".k.linear.2.bias") < 2e-6


def test_going_on_keeps_the_blocks_and_refuses_others(model, pictures, per_block, tmp_path, capsys):
    start = {"hypernetwork_path": per_block / "run.safetensors", "max_train_steps": 8}
    assert runs.train_here(runs.settings(model, pictures, tmp_path, **start)) == 0
    net = hn.load(tmp_path / "run/run.safetensors")
    assert net.config.blocks == ("down.1", "mid", "up.0.1")
    for changes in ({"sides": "k"}, {"train_blocks": ["mid"]}, {"save_optimizer_state": True}):
        runs.forget_accelerate()
        flags = runs.settings(model, pictures, tmp_path, name="other", **start | changes)
        assert runs.train_here(flags) == 2
        assert f"{next(iter(changes))} " in capsys.readouterr().err


@pytest.mark.parametrize("side", ["k", "v"])
def test_a_side_is_trained_alone_and_the_pt_says_the_same(model, pictures, unet, tmp_path, side):
    assert runs.train_here(runs.settings(model, pictures, tmp_path, sides=side)) == 0
    folder = tmp_path / "run"
    (saved,) = folder.glob("checkpoints/*/resume/optimizer.safetensors")
    contents = files.read(folder / "run.safetensors")
    assert {name.split(".")[1] for name in contents.tensors} == {side}
    weights = sum(tensor.numel() for tensor in contents.tensors.values())
    moments = (saved.stat().st_size - 2000) / 4
    assert 1.9 * weights < moments < 2.5 * weights  # two for each weight, and none of the others
    found, plain = prediction(unet, folder / "run.safetensors"), predict(unet)
    assert torch.equal(prediction(unet, folder / "run.pt"), found)
    assert not torch.equal(found, plain)


def test_all_blocks_of_a_width_are_everywhere(model, pictures, unet, tmp_path):
    """Those of 32 are in the middle: a run of these blocks is what it always was, to the bit."""
    for name, changes in (("usual", {}), ("named", {"train_blocks": ["down.1", "mid", "up.0"]})):
        flags = runs.settings(model, pictures, tmp_path, name=name, dims=[32], **changes)
        assert runs.train_here(flags) == 0
        runs.forget_accelerate()
    usual, named = (tmp_path / f"{name}/{name}.pt" for name in ("usual", "named"))
    assert runs.same_tensors(usual, named)
    assert hn.load(named).config.is_everywhere


def test_it_is_said_beforehand_that_there_will_be_no_pt(model, pictures, tmp_path, capsys):
    flags = runs.settings(model, pictures, tmp_path, per_block=True, dry_run=True)
    assert runs.train_here(flags) == 0
    said = capsys.readouterr().out
    assert "the modules of width 16 differ between down.0 and up.1" in said
    assert "diffusers  runs the same" in said


def test_equal_blocks_go_out_to_the_web_ui(run, unet, tmp_path):
    shared = hn.Hypernetwork.create(
        (24,), blocks=("down", "mid", "up"), weight_initialization="XavierNormal", seed=1
    )
    contents = Contents.of(shared)
    tensors = {
        f"{block}.{name}": tensor
        for block in contents.config.blocks
        for name, tensor in contents.tensors.items()
    }
    config = replace(contents.config, block_dims=((24,),) * 3, complete=True)
    own = tmp_path / "own.safetensors"
    files.write(replace(contents, config=config, tensors=tensors), own)
    done = run("convert", own, "-o", tmp_path / "own.pt")
    assert done.returncode == 0, done.stderr
    assert "A1111      runs the same" in done.stdout
    torch.testing.assert_close(prediction(unet, tmp_path / "own.pt"), prediction(unet, own))


REFUSED = {
    "unknown": (
        {"train_blocks": ["dwn.1"]},
        "train_blocks 'dwn.1' is no block of .*did you mean 'down.1'.*it has down, down.0, ",
    ),
    "without attention": ({"train_blocks": ["mid.3"]}, "train_blocks 'mid.3' is no block"),
    "within": ({"train_blocks": ["up", "up.1"]}, "train_blocks up and up.1: the second is in"),
    "width": (
        {"train_blocks": ["mid"], "dims": [16]},
        r"dims \(16\) are not read in train_blocks mid, .* widths \(24, 32\)",
    ),
    "none of a block": (
        {"train_blocks": ["mid", "down.0"], "dims": [16]},
        r"train_blocks mid has attention of the widths \(24, 32\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    model, pictures, tmp_path, capsys, case
):
    changes, words = REFUSED[case]
    assert runs.train_here(runs.settings(model, pictures, tmp_path, **changes)) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert not list((tmp_path / "run/cache").iterdir())


def test_the_optimizers_state_of_a_side_is_none_of_the_web_ui(model, pictures, tmp_path):
    flags = runs.settings(model, pictures, tmp_path, sides="v", save_optimizer_state=True)
    with pytest.raises(OptionError, match=r"goes on in the web UI.*; found sides"):
        cli.parse(flags)
