"""Stable Diffusion XL in the tools: trained by its recipe, then measured, drawn with, handed on."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

import hn
from hn import launch
from hn.build.compared import Compared
from hn.network import files
from tests import runs, tiny

CHANGES = {
    "resolution": 16,
    "mixed_precision": "no",
    "width_learning_rates": "40=0.375",  # of the text, as 2048 is
    "max_train_steps": 12,
    "learning_rate": "2e-2",
    "validation_split": 2,
    "validation_steps": 6,
    "validation_prompt": ["a star", "a heart"],
    "validation_inference_steps": 1,
    "checkpointing_steps": 6,
    "report_to": "none",
}


@pytest.fixture(scope="module")
def trained(xl, pictures, tmp_path_factory):
    """A run of the recipe, as short as can be; strong enough to be seen in eight-bit pictures."""
    folder = tmp_path_factory.mktemp("trained")
    flags = runs.settings(xl, pictures, folder, **CHANGES)
    runs.forget_accelerate()
    assert runs.train_here(["--config", "xl", *flags]) == 0
    runs.forget_accelerate()
    return folder / "run"


def pixels(path):
    return np.asarray(Image.open(path), dtype=int)


def test_the_recipe_learns(trained):
    assert files.read(trained / "run.pt").config.dims == tiny.XL_DIMS
    gain = runs.numbers(trained, "heldout_gain")
    assert gain[-1] > max(0, gain[0])


def test_pictures_are_those_of_diffusers_pipeline(run, xl, trained, tmp_path):
    """Of the tool, from a file, at two strengths; and of that file loaded there."""
    folder, file = tmp_path / "drawn", trained / "run.pt"
    flags = ["a red star", "--base", xl, "--sampler", "Euler", "--steps", 3, "--seeds", 3]
    flags += ["--negative_prompt", "blue", "--hypernetwork", file, "--strengths", 0, 1]
    finished = run("generate", *flags, "-o", folder)
    assert finished.returncode == 0, finished.stderr
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(xl)
    pipe.set_progress_bar_config(disable=True)
    hn.load_hypernetwork(pipe, file)
    drawn = []
    for strength in (0, 1):
        hn.set_hypernetworks(pipe, "run", strength)
        generator = torch.Generator().manual_seed(3)
        asked = {"num_inference_steps": 3, "guidance_scale": 7.0, "generator": generator}
        expected = pipe("a red star", negative_prompt="blue", **asked).images[0]
        drawn.append(pixels(folder / f"0001-seed-3-strength-{strength}.png"))
        assert np.abs(drawn[-1] - np.asarray(expected, dtype=int)).max() <= 1
    assert np.abs(drawn[0] - drawn[1]).max() > 8


def test_a_picture_like_another_is_the_same(run, xl, trained, tmp_path):
    """Its text names the hypernetwork, whose file is looked for, and the size that is its own."""
    flags = ["--base", xl, "--hypernetwork_dir", trained]
    first = ["a star <hypernet:run:0.7>", "--steps", 2, "--seeds", 5, "--size", 24, 16]
    assert run("generate", *first, *flags, "-o", tmp_path / "a").returncode == 0
    one = tmp_path / "a/0001-seed-5-strength-1.png"
    assert Image.open(one).size == (24, 16)
    assert run("generate", "--like", one, *flags, "-o", tmp_path / "b").returncode == 0
    assert (tmp_path / "b" / one.name).read_bytes() == one.read_bytes()


def test_the_refiner_does_not_begin_a_picture(run, refiner, tmp_path):
    refused = run("generate", "a star", "--base", refiner, "-o", tmp_path / "drawn")
    assert refused.returncode == 2
    assert "only finishes pictures" in refused.stderr
    assert "StableDiffusionXLImg2ImgPipeline" in refused.stderr


def test_a_run_is_evaluated(run, trained):
    """All that is measured of it: loss, drift, style, memorisation."""
    few = ["--samples", 4, "--strengths", 0, 1, "--prompts", "a star", "a heart on the left"]
    finished = run("evaluate", trained, *few)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((trained / "evaluation/report.json").read_text())
    best = next(it for it in found["checkpoints"] if it["rank"] == 1)
    assert best["gain"] > 0
    assert best["drift"] > 0
    assert best["memorisation"]["flag"] is False
    still, full = found["sweep"]["points"]
    assert still["drift"] == still["style"] == 0 < full["drift"]
    assert full["style"] != 0
    assert (trained / "evaluation/report.html").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_accelerate")
def test_a_lora_of_its_size_learns_from_what_it_learnt_from(trained):
    compared = Compared("xl", trained, *launch.reopen(trained))
    (own,), (alike, usual) = compared.artifacts(), compared.loras()
    assert min(own.gain, alike.gain, usual.gain) > 0
    assert usual.size == pytest.approx(own.size, rel=0.5)
