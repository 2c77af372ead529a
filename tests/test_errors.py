"""What a user gets wrong ends within seconds, with one message and its exit code."""

import json
import time

import pytest

import hn
from tests import runs

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def _broken_model(tmp_path, model, name="unet"):
    copy = tmp_path / "model"
    copy.mkdir()
    for part in model.iterdir():
        if part.name != name:
            (copy / part.name).symlink_to(part)
    return copy


def _ends(capsys, flags, code, *words):
    began = time.monotonic()
    assert runs.train_here(flags) == code
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert "Traceback" not in error
    for word in words:
        assert word in error
    assert time.monotonic() - began < 20


def test_an_empty_folder(model, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    flags = runs.settings(model, tmp_path / "none", tmp_path)
    _ends(capsys, flags, 3, "train_data_dir", "holds no picture")
    status = runs.status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("failed", 3)


def test_a_missing_folder(model, tmp_path, capsys):
    _ends(capsys, runs.settings(model, tmp_path / "gone", tmp_path), 3, "gone", "is not a folder")


def test_unreadable_pictures_are_all_named(model, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        (folder / name).write_text("<html>")
        (folder / name).with_suffix(".txt").write_text("a caption")
    flags = runs.settings(model, folder, tmp_path)
    _ends(capsys, flags, 3, "2 of 2 pictures", "a.png", "b.jpg", "mend or remove")


def test_a_model_without_unet(model, pictures, tmp_path, capsys):
    broken = _broken_model(tmp_path, model)
    _ends(capsys, runs.settings(broken, pictures, tmp_path), 4, "has no folder unet")


def test_a_model_with_another_kind_of_unet(model, pictures, tmp_path, capsys):
    broken = _broken_model(tmp_path, model)
    (broken / "unet").mkdir()
    (broken / "unet/config.json").write_text(json.dumps({"_class_name": "UNet3DConditionModel"}))
    _ends(capsys, runs.settings(broken, pictures, tmp_path), 4, "UNet3DConditionModel")


def test_neither_folder_nor_hub_id(pictures, tmp_path, capsys):
    _ends(capsys, runs.settings("nothing", pictures, tmp_path), 4, "neither a folder nor a hub id")


def test_dims_that_the_unet_does_not_have(model, pictures, tmp_path, capsys):
    flags = runs.settings(model, pictures, tmp_path, dims=[16, 768])
    _ends(capsys, flags, 4, "dims [768]", "it has the widths (16, 24, 32), ", "Leave [768] out")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"optimizer": "AdamWW"}, 2, ["optimizer 'AdamWW' is not found"]),
        ({"optimizer_args": ["wd=1"]}, 2, ["refuses its settings"]),
        ({"learning_rate": "fast"}, 2, ["learning_rate 'fast'", "5e-5:150"]),
        ({"learning_rate": "-1"}, 2, ["not a positive number"]),
        ({"activation_func": "swoosh"}, 4, ["activation_func 'swoosh'", "relu"]),
        ({"layer_structure": [1, 2]}, 4, ["layer_structure must start and end with 1"]),
        ({"clip_skip": 2}, 2, ["clip_skip must be from 1 to 1", "found 2"]),
        ({"mixed_precision": "fp16"}, 2, ["fp16 needs a GPU"]),
        ({"template": "nonsense"}, 3, ["template 'nonsense'", "none, style, subject"]),
        ({"validation_data_dir": "gone"}, 3, ["validation_data_dir 'gone'"]),
        ({"resume_from_checkpoint": "latest"}, 4, ["holds no valid checkpoint"]),
        ({"hypernetwork_path": "gone.pt"}, 4, ["cannot read gone.pt"]),
        ({"dims": [24], "learning_rate": "1e30", "clip_grad_mode": "none"}, 6, ["not finite"]),
    ],
)
def test_a_setting_that_cannot_work(model, pictures, tmp_path, capsys, changes, code, words):
    _ends(capsys, runs.settings(model, pictures, tmp_path, **changes), code, *words)


def test_a_hypernetwork_that_is_trained_far_enough(model, pictures, tmp_path, capsys):
    """Steps are absolute, as in the web UI."""
    net = hn.Hypernetwork.create((24,), seed=0)
    net.describe(step=6)
    hn.save(net, tmp_path / "old.pt")
    flags = runs.settings(model, pictures, tmp_path, hypernetwork_path=tmp_path / "old.pt")
    _ends(capsys, flags, 2, "max_train_steps is 6", "is at step 6 already")
    assert runs.train_here([*flags[:-2], "--max_train_steps", "8", *flags[-2:]]) == 0
    rows = runs.metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "loss" in row] == [7, 8]
    assert "old.pt at step 6, sha256 " in capsys.readouterr().out


def test_a_folder_that_holds_a_run_is_not_overwritten(model, pictures, tmp_path, capsys):
    flags = runs.settings(model, pictures, tmp_path)
    assert runs.train_here(flags) == 0
    before = (tmp_path / "run/run.pt").read_bytes()
    capsys.readouterr()
    _ends(capsys, flags, 2, "holds a run already", "--resume_from_checkpoint latest")
    assert (tmp_path / "run/run.pt").read_bytes() == before


def test_an_output_folder_that_is_a_file(model, pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    _ends(capsys, runs.settings(model, pictures, tmp_path / "file"), 5, "cannot be written")
