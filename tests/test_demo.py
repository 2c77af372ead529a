"""The embedded demo: its model obeys, and `--config demo` teaches it a style it did not know."""

import re

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from hn import demo
from hn.demo import measure
from hn.demo.pictures import SHAPES, caption, render, sample_scene
from tests import runs


@pytest.fixture(scope="module")
def pipeline():
    loaded = StableDiffusionPipeline.from_pretrained(demo.MODEL)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """The README's command, shortened: a third of the steps, no preview on the way."""
    folder = tmp_path_factory.mktemp("demo")
    flags = ["--config", "demo", "--output_dir", str(folder), "--validation_steps", "0"]
    result = runs.run(
        runs.PYTHON, [*flags, "--max_train_steps", "100", "--checkpointing_steps", "0"]
    )
    assert result.returncode == 0, result.stderr
    return folder / "demo"


def test_the_judge_is_right_about_the_generator():
    """What reads colours and shapes reads the generator's own pictures without a mistake."""
    from random import Random

    rng = Random(7)
    scenes = [sample_scene(rng) for _ in range(200)]
    obeyed = measure.obedience([render(scene) for scene in scenes], scenes)
    assert obeyed == measure.Obedience(background=1.0, colour=1.0, shape=1.0)
    assert max(measure.dark_share(render(scene)) for scene in scenes) == 0.0
    assert min(measure.dark_share(render(scene, "neon")) for scene in scenes) > 0.7


def test_the_model_is_small_and_in_the_standard_layout():
    size = sum(path.stat().st_size for path in demo.MODEL.rglob("*") if path.is_file())
    assert size <= 8 * 2**20
    parts = {path.name for path in demo.MODEL.iterdir()}
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"} <= parts


def test_all_widths_of_the_model_differ(pipeline):
    from hn.diffusion.attention import context_dims

    assert context_dims(pipeline.unet) == (32, 64, 80, 96)


def test_the_base_model_obeys_prompts_that_it_never_saw(pipeline):
    """A sample of what `make_demo_model.py` measured on 200: at least 90 % colours, 80 % shapes."""
    scenes = measure.held_out_scenes(30, seed=11)
    obeyed = measure.obedience(measure.draw(pipeline, scenes), scenes)
    assert obeyed.background >= 0.9
    assert obeyed.colour >= 0.85  # 30 pictures: one standard error below the 90 % of 200
    assert obeyed.shape >= 0.75


def test_the_style_set_leaves_the_unseen_shapes_out(tmp_path):
    trained, held_out = demo.write_pictures(tmp_path)
    shown = " ".join(path.read_text() for path in trained.glob("*.txt"))
    assert not any(shape in shown for shape in demo.HELD_OUT_SHAPES)
    assert set(SHAPES) == {*demo.TRAINED_SHAPES, *demo.HELD_OUT_SHAPES}
    assert all(
        any(shape in path.read_text() for shape in demo.HELD_OUT_SHAPES)
        for path in held_out.glob("*.txt")
    )


def test_the_pictures_are_the_same_every_time(tmp_path):
    first, second = demo.write_pictures(tmp_path / "a")[0], demo.write_pictures(tmp_path / "b")[0]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_the_held_out_loss_falls_clearly_below_the_base_models(demo_run):
    last = [row for row in runs.metrics(demo_run) if "heldout_loss" in row][-1]
    assert last["heldout_gain"] > 0.5
    difference = last["heldout_base_loss"] - last["heldout_loss"]
    assert difference > 5 * last["heldout_difference_error"]


def test_the_style_comes_over_unseen_subjects(run, demo_run, tmp_path):
    """Strength 1 goes at least half of the way to the style, strength 0.5 lies between."""
    picture = tmp_path / "grid.png"
    net = demo_run / "demo.safetensors"
    result = run("measure_demo", net, "--pictures", 8, "-o", picture)
    ways = [float(way) for way in re.findall(r"(-?[\d.]+)% of the way", result.stdout)]
    assert ways[0] == 0
    assert ways[2] >= 50
    assert ways[0] < ways[1] < ways[2]
    assert Image.open(picture).width > 100


def test_a_plain_prompt_gives_a_plain_picture_and_strength_1_a_dark_one(pipeline, demo_run):
    import hn

    scenes = measure.held_out_scenes(4, seed=3, shapes=("heart",))
    plain = measure.draw(pipeline, scenes)
    with hn.attach(pipeline.unet, [(hn.load(demo_run / "demo.pt"), 1.0)]):
        styled = measure.draw(pipeline, scenes)
    again = measure.draw(pipeline, scenes)
    assert np.mean([measure.dark_share(p) for p in plain]) < 0.05
    assert np.mean([measure.dark_share(p) for p in styled]) > 0.4
    assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))


def test_captions_are_whole_words_for_the_tokenizer(pipeline):
    from random import Random

    words = caption(sample_scene(Random(0), variants=1.0))
    tokens = pipeline.tokenizer.tokenize(words)
    assert len(tokens) == len(re.findall(r"\w+|,", words))
    ids = pipeline.tokenizer("unknown wörds 日本").input_ids
    assert torch.tensor(ids).max() < len(pipeline.tokenizer)
