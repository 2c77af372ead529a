"""The web UI's settings file: what it means here, and that a run starts from it."""

import json
import runpy
import subprocess
import sys

import pytest

from hn import cli, web_ui_settings
from hn.config import Config
from hn.errors import OptionError
from tests import golden, runs

SETTINGS = {
    "datetime": "2023-06-01 12:00:00",
    "model_name": "v1-5-pruned-emaonly",
    "model_hash": "6ce0161689",
    "num_of_dataset_images": 3,
    "layer_structure": [1.0, 2.0, 1.0],
    "activation_func": "relu",
    "weight_init": "Normal",
    "add_layer_norm": False,
    "use_dropout": False,
    "hypernetwork_name": "my style(0123456789)",
    "learn_rate": "5e-3:2, 1e-3",
    "batch_size": 16,
    "gradient_step": 4,
    "data_root": "/pictures",
    "log_directory": "textual_inversion/2023-06-01/my style",
    "training_width": 24,
    "training_height": 16,
    "steps": 3,
    "initial_step": 0,
    "clip_grad_mode": "disabled",
    "clip_grad_value": "0.1",
    "latent_sampling_method": "deterministic",
    "create_image_every": 0,
    "save_hypernetwork_every": 2,
    "template_file": "/webui/textual_inversion_templates/subject_filewords.txt",
    "preview_prompt": "a star",
    "preview_negative_prompt": "",
    "preview_steps": 2,
    "preview_sampler_index": 0,
    "preview_cfg_scale": 7,
    "preview_seed": -1,
}


def write(folder, **changes):
    path = folder / "settings.json"
    path.write_text(json.dumps(SETTINGS | changes))
    return path


def imported(folder, **changes):
    return web_ui_settings.read(write(folder, **changes))


def test_no_activation_is_linear_there(tmp_path):
    """Here the default is another, so it must be named."""
    found = imported(tmp_path, activation_func=None).config()
    assert found.network.activation_func == "linear"
    assert 'activation_func = "linear"' in cli.to_toml(found, Config())


def test_every_setting_gets_its_place(tmp_path):
    config = imported(tmp_path).config(pretrained_model_name_or_path="base")
    assert (config.model.pretrained_model_name_or_path, config.model.prompt_syntax) == (
        "base",
        "webui",
    )
    network, data, optimizer = config.network, config.data, config.optimizer
    assert (network.name, network.layer_structure) == ("my style", (1.0, 2.0, 1.0))
    assert (network.activation_func, network.weight_initialization) == ("relu", "Normal")
    assert (data.train_data_dir, data.size, data.resize_mode) == ("/pictures", (24, 16), "stretch")
    assert (data.latent_sampling, data.missing_caption) == ("deterministic", "filename")
    assert data.template == "subject"
    assert (optimizer.learning_rate, optimizer.clip_grad_mode) == ("5e-3:2, 1e-3", "none")
    assert optimizer.allow_high_learning_rate
    assert not imported(tmp_path, learn_rate="1e-5").config().optimizer.allow_high_learning_rate
    assert (config.training.max_train_steps, config.output.checkpointing_steps) == (3, 2)
    assert config.validation.validation_prompt == ("a star",)
    assert (config.validation.validation_steps, config.validation.validation_seed) == (0, 0)


def test_batches_are_those_that_the_web_ui_trained_with(tmp_path):
    training = imported(tmp_path).config().training
    assert (training.train_batch_size, training.gradient_accumulation_steps) == (3, 1)


@pytest.mark.parametrize("case", golden.read_json("buckets.json")["clamping"], ids=str)
def test_a_small_set_clamps_batch_and_accumulation(case):
    found = web_ui_settings.clamped(case["batch_size"], case["gradient_step"], case["images"])
    assert found == (case["batch_size_used"], case["gradient_step_used"])


def test_what_it_does_not_say_is_said(tmp_path):
    notes = "\n".join(
        imported(tmp_path, use_dropout=True, initial_step=500, clip_grad_mode="norm").notes
    )
    for words in (
        "does not record: shuffled tags",
        "sizes that were kept",
        "not taken over: datetime, log_directory, preview_sampler_index",
        "v1-5-pruned-emaonly [6ce0161689]",
        "went on at step 500",
        "give dropout_structure",
        "clip_grad_value 0.1 clips far less",
        "subject_filewords.txt is not here; taken instead: our subject, in other words",
    ):
        assert words in notes


def test_a_template_that_is_here_is_taken(tmp_path):
    (tmp_path / "mine.txt").write_text("[filewords]")
    found = imported(tmp_path, template_file=str(tmp_path / "mine.txt"))
    assert found.config().data.template == str(tmp_path / "mine.txt")
    assert not any("is not here" in note for note in found.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot read"),
        ("[]", "is no settings file"),
        ('{"learn_rate": 1}', "it has no hypernetwork_name"),
        ('{"hypernetwork_name": "a", "batch_size": "many"}', "a value is of another kind"),
        ('{"hypernetwork_name": "a", "num_of_dataset_images": 0}', "another kind"),
        ("[" * 100_000, "cannot read"),
    ],
)
def test_another_file_is_refused(tmp_path, content, words):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(OptionError, match=words):
        web_ui_settings.read(tmp_path / "settings.json")


def test_a_text_of_the_file_cannot_become_a_setting(tmp_path):
    """A note is one line, a comment in the TOML file, whatever the file holds."""
    evil = 'x\n[optimizer]\noptimizer = "their.Class"\r# \x1b[2J'
    texts = dict.fromkeys(("model_name", "model_hash", "template_file"), evil)
    found = imported(tmp_path, **texts, **{evil: 1}, clip_grad_mode="norm", clip_grad_value=evil)
    assert len(found.notes) == 6
    assert all(note.isprintable() for note in found.notes)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = write(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert web_ui_settings.read(path).config().network.name == "my style"


def test_what_cannot_be_a_setting_leaves_no_file(tmp_path, monkeypatch, capsys):
    source, output = write(tmp_path, clip_grad_mode="often"), tmp_path / "mine.toml"
    tool = str(runs.ROOT / "tools/import_settings.py")
    monkeypatch.setattr(sys, "argv", [tool, str(source), "-o", str(output)])
    assert runpy.run_path(tool)["main"]() == 2
    said = capsys.readouterr().err
    assert f"{source}: optimizer.clip_grad_mode must be 'none' or 'norm' or 'value'" in said
    assert not output.exists()


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_starts_from_the_imported_file(tmp_path, model, pictures):
    source, output = write(tmp_path, data_root=str(pictures)), tmp_path / "mine.toml"
    command = [sys.executable, str(runs.ROOT / "tools/import_settings.py"), str(source)]
    command += ["-o", str(output), "--pretrained_model_name_or_path", str(model)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=runs.ROOT, check=True)
    assert "-> " in result.stdout
    again = subprocess.run(command, capture_output=True, text=True, cwd=runs.ROOT, check=False)
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    assert cli.read_toml(output) != Config()
    flags = ["--config", str(output), "--output_dir", str(tmp_path), "--report_to", "none"]
    flags += ["--logging_steps", "1"]
    assert runs.train_here(flags) == 0
    assert runs.status(tmp_path / "my style")["step"] == 3
    rates = {row["learning_rate"] for row in runs.metrics(tmp_path / "my style") if "loss" in row}
    assert rates <= {5e-3, 1e-3}
