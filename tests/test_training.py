"""The training script, started as a user starts it."""

import csv
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hn
from hn.network import files
from tests import runs, tiny


@pytest.fixture(scope="module")
def finished(model, pictures, tmp_path_factory):
    """A run with everything switched on, launched by accelerate."""
    folder = tmp_path_factory.mktemp("finished")
    flags = runs.settings(
        model,
        pictures,
        folder,
        checkpointing_steps=2,
        checkpoints_total_limit=2,
        validation_data_dir=pictures,
        validation_prompt=["a red star", "a blue heart on the left"],
        validation_steps=3,
        validation_inference_steps=4,
        report_to="tensorboard",
    )
    config = str(runs.ROOT / "accelerate_configs/single.yaml")
    result = runs.run([*runs.ACCELERATE, "--config_file", config, runs.SCRIPT], flags)
    assert result.returncode == 0, result.stderr
    return folder / "run", result


def test_the_artifacts_load_and_name_themselves(finished):
    folder, _ = finished
    pt, native = hn.load(folder / "run.pt"), hn.load(folder / "run.safetensors")
    assert pt.provenance == native.provenance
    assert (pt.provenance.name, pt.provenance.step) == ("run", 6)
    assert pt.dims == (16, 24, 32)
    assert runs.same_tensors(folder / "run.pt", folder / "run.safetensors")


def test_it_says_where_everything_lies(finished):
    _, result = finished
    for name in ("run.pt", "run.safetensors", "step-00000006", "metrics.jsonl", "tensorboard"):
        assert name in result.stdout
    assert "held-out loss" in result.stdout


def test_only_the_newest_checkpoints_are_kept(finished):
    folder, _ = finished
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000006"]
    files_of_one = sorted(
        str(p.relative_to(folder / "checkpoints/step-00000004"))
        for p in (folder / "checkpoints/step-00000004").rglob("*")
        if p.is_file()
    )
    assert files_of_one == [
        "MANIFEST.json",
        "resume/optimizer.safetensors",
        "run-4.pt",
        "run-4.safetensors",
        "state.json",
    ]


def test_previews_show_prompts_by_strengths(finished):
    """Untrained identity at step 0 aside, strength 0 never changes and strength 1 does."""
    folder, _ = finished
    first, last = (
        np.asarray(Image.open(folder / f"previews/step-0000000{step}.png")) for step in (3, 6)
    )
    assert first.shape == last.shape
    third = first.shape[1] // 3
    assert (first[:, : third - 4] == last[:, : third - 4]).all()
    assert (first[:, 2 * third + 4 :] != last[:, 2 * third + 4 :]).any()


def test_the_numbers_are_written_everywhere(finished):
    folder, _ = finished
    rows = runs.metrics(folder)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert {row["step"] for row in rows if "heldout_loss" in row} == {3, 6}
    with open(folder / "hypernetwork_loss.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["step", "epoch", "epoch_step", "loss", "learn_rate"]
    assert [row["epoch"] for row in table] == ["0", "0", "0", "1", "1", "1"]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert {"loss", "learning_rate", "gradient_norm", "heldout_loss"} <= set(
        events.Tags()["scalars"]
    )
    assert "preview" in events.Tags()["images"]
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_the_status_and_the_settings_are_written(finished):
    folder, _ = finished
    status = runs.status(folder)
    assert (status["state"], status["step"], status["exit_code"]) == ("done", 6, 0)
    assert "--resume_from_checkpoint latest" in status["resume_command"]
    state = json.loads((folder / "checkpoints/step-00000006/state.json").read_text())
    assert state["step"] == 6
    assert "learning_rate = " in (folder / "config.toml").read_text()


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    "changes",
    [
        {"use_8bit_adam": True},
        {"optimizer": "torch.optim.RMSprop"},
        {"optimizer": "bitsandbytes.optim.Lion8bit"},
        {"optimizer": "lion_pytorch.Lion", "learning_rate": "3e-3"},
        {"optimizer": "schedulefree.AdamWScheduleFree"},
        {"optimizer": "prodigyopt.Prodigy", "learning_rate": "1", "optimizer_args": ["d0=1e-4"]},
        {"loss_type": "huber", "loss_weighting": "soft_min_snr", "residual_penalty": 0.01},
        {"optimizer_args": ["betas=(0.9,0.99)", "weight_decay=0"], "clip_grad_mode": "value"},
        {"mixed_precision": "bf16", "gradient_checkpointing": True},
        {"template": "style", "latent_sampling": "deterministic", "clip_grad_mode": "none"},
        {"learning_rate": "1e-2:2, 1e-3:4, 1e-4", "lr_warmup_steps": 2},
        {"dims": [24], "is_layer_norm": True, "activation_func": "mish"},
        {"weight_initialization": "Normal", "activate_output": True, "activation_func": "tanh"},
        {"hypernetwork_path": "start.pt"},
    ],
    ids="-".join,
)
def test_it_learns_with(model, pictures, tmp_path, changes):
    """The held-out loss (here on the training pictures) falls within 30 steps."""
    if "hypernetwork_path" in changes:
        start = hn.Hypernetwork.create((16, 24), activation_func="relu", seed=3)
        hn.save(start, tmp_path / "start.pt")
        changes = {"hypernetwork_path": tmp_path / "start.pt"}
    flags = runs.settings(
        model,
        pictures,
        tmp_path,
        **{"max_train_steps": 30, "learning_rate": "1e-2", "validation_data_dir": pictures}
        | changes,
    )
    assert runs.train_here(flags) == 0
    last = [row for row in runs.metrics(tmp_path / "run") if "heldout_loss" in row][-1]
    assert last["heldout_gain"] > 3 * last["heldout_difference_error"] / last["heldout_base_loss"]


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_v_prediction_model_learns(pictures, tmp_path):
    """As Stable Diffusion 2 says of itself in its scheduler's configuration."""
    model = tiny.make_model(tmp_path / "model", prediction_type="v_prediction")
    changes = {"max_train_steps": 30, "learning_rate": "1e-2", "snr_gamma": 5}
    flags = runs.settings(model, pictures, tmp_path, validation_data_dir=pictures, **changes)
    assert runs.train_here(flags) == 0
    last = [row for row in runs.metrics(tmp_path / "run") if "heldout_loss" in row][-1]
    assert last["heldout_gain"] > 0.02


@pytest.mark.usefixtures("fresh_accelerate")
def test_an_hf_dataset_trains_as_the_folder_does(model, pictures, tmp_path):
    """The same pictures and captions from parquet give the same bits."""
    files = sorted(pictures.glob("*.png"))
    rows = {
        "picture": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "words": [file.with_suffix(".txt").read_text() for file in files],
    }
    features = Features({"picture": ImageFeature(), "words": Value("string")})
    (tmp_path / "data").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data/train.parquet")
    columns = {"image_column": "picture", "caption_column": "words"}
    hub = {"train_data_dir": None, "dataset_name": tmp_path / "data", **columns}
    for folder, changes in (("folder", {}), ("hub", hub)):
        assert runs.train_here(runs.settings(model, pictures, tmp_path / folder, **changes)) == 0
    assert runs.same_tensors(tmp_path / "folder/run/run.pt", tmp_path / "hub/run/run.pt")


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_schedule_is_followed_and_ends_the_run(model, pictures, tmp_path):
    flags = runs.settings(model, pictures, tmp_path, learning_rate="1e-2:2, 1e-3:4")
    assert runs.train_here(flags) == 0
    rows = runs.metrics(tmp_path / "run")
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    assert rates == [1e-2, 1e-2, 1e-3, 1e-3]
    assert files.load(tmp_path / "run/run.pt").provenance.step == 4


@pytest.mark.usefixtures("fresh_accelerate")
def test_accumulation_equals_a_larger_batch(model, pictures, tmp_path):
    for name, batch, accumulation in (("large", 4, 1), ("small", 1, 4)):
        flags = runs.settings(
            model,
            pictures,
            tmp_path,
            name=name,
            train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        assert runs.train_here(flags) == 0
    # The same gradients summed in another order; AdamW's first steps enlarge what is near zero.
    large, small = (hn.load(tmp_path / f"{n}/{n}.pt").tensors() for n in ("large", "small"))
    for key, tensor in large.items():
        if not key.endswith("linear.2.bias") or ".k." not in key:  # its gradient is rounding noise
            assert torch.allclose(tensor, small[key], atol=2e-5), key


@pytest.mark.usefixtures("fresh_accelerate")
def test_previews_measurements_trackers_and_checkpoints_disturb_nothing(model, pictures, tmp_path):
    everything = {
        "validation_prompt": ["a red star"],
        "validation_data_dir": pictures,
        "validation_steps": 2,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": 2,
        "keep_best": True,
        "save_optimizer_state": True,
        "report_to": "tensorboard",
        "logging_steps": 1,
    }
    nothing = {"validation_steps": 0, "logging_steps": 100}
    for name, changes in (("with", everything), ("without", nothing)):
        flags = runs.settings(
            model, pictures, tmp_path / name, dropout_structure=[0, 0.2, 0], **changes
        )
        assert runs.train_here([*flags, "--validation_inference_steps", "2"]) == 0
    last = "checkpoints/step-00000006"
    for name in ("run.pt", "run.safetensors", f"{last}/resume/optimizer.safetensors"):
        assert (tmp_path / "with/run" / name).read_bytes() == (
            tmp_path / "without/run" / name
        ).read_bytes()


@pytest.mark.usefixtures("fresh_accelerate")
def test_looking_disturbs_no_average(model, pictures, tmp_path):
    """Where the weights that are shown are not those that are trained."""
    looking = {
        "validation_prompt": ["a red star"],
        "validation_data_dir": pictures,
        "validation_steps": 2,
        "checkpointing_steps": 3,
    }
    for name, changes in (("with", looking), ("without", {})):
        flags = runs.settings(
            model,
            pictures,
            tmp_path / name,
            optimizer="schedulefree.AdamWScheduleFree",
            **changes,
        )
        assert runs.train_here([*flags, "--validation_inference_steps", "2"]) == 0
    assert runs.same_tensors(tmp_path / "with/run/run.pt", tmp_path / "without/run/run.pt")


@pytest.mark.usefixtures("fresh_accelerate")
def test_an_average_is_saved_drawn_and_measured_beside_the_weights(
    model, pictures, tmp_path, capsys
):
    flags = runs.settings(
        model,
        pictures,
        tmp_path,
        use_ema=True,
        learning_rate="1e-2",
        noise_offset=0.05,
        checkpointing_steps=3,
        save_optimizer_state=True,
        validation_data_dir=pictures,
        validation_prompt=["a red star"],
        validation_inference_steps=2,
        validation_strengths=[0, 1],
    )
    assert runs.train_here(flags) == 0
    folder = tmp_path / "run"
    stems = ["checkpoints/step-00000003/run-3", "checkpoints/step-00000006/run-6", "run"]
    for stem in stems:
        for ending in (".pt", ".safetensors"):
            average = hn.load(folder / f"{stem}-ema{ending}")
            assert average.provenance.name == f"{stem.rpartition('/')[2]}-ema"
        assert not runs.same_tensors(folder / f"{stem}.pt", folder / f"{stem}-ema.pt")
        assert not (folder / f"{stem}-ema.pt.optim").exists()
    assert "noise_offset 0.05, use_ema True" in str(average.provenance.optional_info)
    last = runs.metrics(folder)[-1]
    assert 0 < last["heldout_ema_gain"] != last["heldout_gain"] > 0
    assert last["heldout_ema_loss"] == pytest.approx(
        last["heldout_base_loss"] * (1 - last["heldout_ema_gain"])
    )
    out = capsys.readouterr().out
    assert "run-ema.pt" in out
    assert "held-out loss  ema: " in out
    with Image.open(folder / "previews/step-00000006.png") as preview:
        shown = np.asarray(preview)
    base, trained, average = (shown[24:152, 4 + 132 * i : 132 + 132 * i] for i in range(3))
    assert shown.shape[1] == 3 * 132 + 4
    assert (base != trained).any()
    assert (trained != average).any()
    assert (base != average).any()


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("resize_mode", ["crop", "pad", "stretch"])
def test_a_wide_training_size_is_that_of_latents_and_previews(
    model, pictures, tmp_path, resize_mode
):
    flags = runs.settings(
        model,
        pictures,
        tmp_path,
        resolution=[24, 16],
        resize_mode=resize_mode,
        max_train_steps=2,
        validation_data_dir=pictures,
        validation_prompt=["a red star"],
        validation_inference_steps=2,
        validation_strengths=[1],
    )
    assert runs.train_here(flags) == 0
    with Image.open(tmp_path / "run/previews/step-00000002.png") as preview:
        # tiny pictures are enlarged, here five times; beside and above them are margins and labels
        assert preview.size == (5 * 24 + 8, 5 * 16 + 40)
    assert "heldout_loss" in runs.metrics(tmp_path / "run")[-1]


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_of_an_older_settings_file_is_the_same_run(model, pictures, tmp_path):
    """`resolution = 16`, as it was written before it could be two numbers."""
    assert runs.train_here(runs.settings(model, pictures, tmp_path / "flags")) == 0
    written = (tmp_path / "flags/run/config.toml").read_text()
    assert "resolution = [16]" in written
    file = tmp_path / "old.toml"
    file.write_text(written.replace("resolution = [16]", "resolution = 16"))
    flags = ["--config", str(file), "--output_dir", str(tmp_path / "file")]
    assert runs.train_here(flags) == 0
    assert runs.same_tensors(tmp_path / "flags/run/run.pt", tmp_path / "file/run/run.pt")


def opaque(size):
    return Image.new("L", size, 255)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_constant_alpha_changes_nothing_to_the_bit(model, tmp_path):
    folder = tiny.make_pictures(tmp_path / "set", alpha=opaque)
    for name, changes in (("with", {"use_alpha_weights": True}), ("without", {})):
        flags = runs.settings(
            model, folder, tmp_path, name=name, validation_data_dir=folder, **changes
        )
        assert runs.train_here(flags) == 0
    runs.assert_same(tmp_path / "with", tmp_path / "without")


@pytest.mark.usefixtures("fresh_accelerate")
def test_alpha_weights_the_training_and_the_held_out_loss(model, masked, tmp_path):
    """The same colours, once with a mask and once without."""
    folders = {"masked": masked, "opaque": tiny.make_pictures(tmp_path / "set", alpha=opaque)}
    for name, folder in folders.items():
        settings = {"use_alpha_weights": True, "validation_data_dir": folder}
        assert runs.train_here(runs.settings(model, folder, tmp_path, name=name, **settings)) == 0
    first = [runs.losses(tmp_path / name)[0] for name in folders]
    base = [runs.metrics(tmp_path / name)[-1]["heldout_base_loss"] for name in folders]
    assert first[0] != pytest.approx(first[1], rel=1e-3)
    assert base[0] != pytest.approx(base[1], rel=1e-3)
    assert not runs.same_tensors(tmp_path / "masked/masked.pt", tmp_path / "opaque/opaque.pt")
