"""tools/evaluate.py on real runs of a tiny model."""

import json
import shutil

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
)

import hn
from hn import demo
from hn.network import files
from tests import runs, streamed

FEW = ("--samples", 4, "--strengths", 0.5, 1, "--prompts", "a star", "a heart on the left")


@pytest.fixture(scope="module")
def trained(model, pictures, tmp_path_factory):
    """Three checkpoints, of which the last is made to diverge by hand, as a file from elsewhere."""
    from accelerate.state import AcceleratorState, GradientState

    folder = tmp_path_factory.mktemp("evaluated")
    flags = runs.settings(
        model, pictures, folder, checkpointing_steps=2, validation_split=2,
        validation_inference_steps=2, learning_rate="0.02",
    )  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    assert runs.train_here(flags) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def embedders(tmp_path_factory):
    """A random CLIP and a random DINO."""
    folder = tmp_path_factory.mktemp("embedders")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    tokenizer = CLIPTokenizer.from_pretrained(demo.MODEL / "tokenizer")
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **small)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **small)
    clip = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(clip).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    dino = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=14,
                        patch_size=7)  # fmt: skip
    Dinov2Model(dino).save_pretrained(folder / "dino")
    return folder


def report(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_is_measured_ranked_and_swept(run, trained, embedders, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")  # a run may be moved, without its pictures
    models = ("--clip_model", embedders / "clip", "--dino_model", embedders / "dino")
    done = run("evaluate", copy, *FEW, *models)
    assert done.returncode == 0, done.stderr
    found = report(copy / "evaluation")
    assert [row["step"] for row in found["checkpoints"]] == [2, 4, 6]
    assert sorted(row["rank"] for row in found["checkpoints"]) == [1, 2, 3]
    assert found["heldout"] == {
        "pictures": 2, "draws": 4, "source": "validation_split",
        "bands": [[0, 250], [250, 500], [500, 750], [750, 1000]],
    }  # fmt: skip
    assert [it["strength"] for it in found["sweep"]["points"]] == [0, 0.5, 1]
    start, *_, end = found["sweep"]["points"]
    assert (start["drift"], start["style"], start["diversity"]) == (0, 0, 1)
    assert end["drift"] > 0
    assert {"agreement", "clip", "dino"} <= set(end)
    assert -1 <= end["clip"] <= 1
    assert {it["split"] for it in found["pictures"]} == {"heldout", "train"}
    gains = [it["by_step"]["6"]["gain"] for it in found["pictures"]]
    assert len(gains) == 6
    assert gains == sorted(gains)
    best = next(it for it in found["checkpoints"] if it["rank"] == 1)
    assert found["recommendation"]["artifact"] == best["artifact"]
    assert best["artifact"] in done.stdout
    assert found["recommendation"]["reason"] in done.stdout
    assert (copy / "evaluation" / found["grids"][0]["file"]).is_file()
    text = (copy / "evaluation/report.json").read_text()
    assert str(tmp_path) not in text
    assert str(trained.parent) not in text

    again = run("evaluate", copy, *FEW, *models, "-o", tmp_path / "again")
    assert again.returncode == 0
    assert (tmp_path / "again/report.json").read_text() == text


@pytest.mark.usefixtures("fresh_accelerate")
def test_what_diverged_is_never_recommended(run, trained, tmp_path):
    """Weights that overflow; an average beside a checkpoint competes, too."""
    copy = shutil.copytree(trained, tmp_path / "copy")
    for step in (2, 4, 6):
        folder = copy / f"checkpoints/step-{step:08d}"
        net = hn.load(folder / f"run-{step}.safetensors")
        for parameter in net.parameters():
            parameter.data *= 1e20
        files.save(net, folder / f"run-{step}.safetensors")
        if step == 6:
            shutil.copy(trained / "checkpoints/step-00000004/run-4.safetensors",
                        folder / "run-6-ema.safetensors")  # fmt: skip
        _sign(folder)
    done = run("evaluate", copy, *FEW)
    assert done.returncode == 0, done.stderr
    found = report(copy / "evaluation")
    kinds = [(row["step"], row["kind"], "diverged" in row["flags"]) for row in found["checkpoints"]]
    assert kinds == [(2, "raw", True), (4, "raw", True), (6, "raw", True), (6, "ema", False)]
    assert found["recommendation"]["artifact"] == "run-6-ema.safetensors"

    (copy / "checkpoints/step-00000006/run-6-ema.safetensors").unlink()
    _sign(copy / "checkpoints/step-00000006")
    done = run("evaluate", copy, *FEW)
    assert "recommended    none: every checkpoint is worse than the base model" in done.stdout
    assert "recommendation" not in report(copy / "evaluation")


@pytest.mark.usefixtures("fresh_accelerate")
def test_without_held_out_pictures_it_says_what_that_means(run, model, pictures, tmp_path):
    """Trained with a cache of its own place, so the pictures are looked up in it again."""
    flags = runs.settings(
        model, pictures, tmp_path, max_train_steps=2, validation_inference_steps=2,
        latent_cache_dir=tmp_path / "cache",
    )  # fmt: skip
    assert runs.train_here(flags) == 0
    moved = shutil.copytree(model, tmp_path / "moved")
    done = run("evaluate", tmp_path / "run", *FEW, "--base", moved)
    assert done.returncode == 0, done.stderr
    found = report(tmp_path / "run/evaluation")
    assert found["heldout"]["source"] == "none"
    assert "no pictures were held out" in found["recommendation"]["reason"]


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("held_out", [True, False])
def test_a_streamed_run_has_held_out_pictures_or_none(run, model, pictures, tmp_path, held_out):
    folder = streamed.write_parquet(tmp_path / "set", streamed.scenes(6), 2)
    flags = runs.settings(
        model, None, tmp_path, train_data_dir=None, dataset_name=folder, streaming=True,
        max_train_steps=2, shuffle_buffer=4, validation_inference_steps=2,
        validation_data_dir=pictures if held_out else None,
    )  # fmt: skip
    assert runs.train_here(flags) == 0
    shutil.rmtree(folder)
    done = run("evaluate", tmp_path / "run", *FEW)
    if not held_out:
        assert done.returncode == 3
        assert "kept no pictures to measure on" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    found = report(tmp_path / "run/evaluation")
    assert {it["split"] for it in found["pictures"]} == {"heldout"}
    assert "style" not in found["sweep"]["points"][-1]
    assert "memorisation" not in found["checkpoints"][0]


def test_what_is_no_run_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no checkpoint to evaluate" in run("evaluate", tmp_path / "empty").stderr
    assert run("evaluate", tmp_path, "--samples", 3).returncode == 2
    assert "strengths must not be negative" in run("evaluate", tmp_path, "--strengths", -1).stderr


def _sign(checkpoint):
    """Make the manifest that of what lies there now."""
    from hn.training.keeping.checkpoint import manifest

    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest(checkpoint), indent=1) + "\n")
