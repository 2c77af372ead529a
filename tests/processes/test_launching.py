"""What launchers ask for, and jobs that are started again by themselves."""

import shutil

import pytest

from hn import cli
from hn.errors import OptionError
from tests import runs


@pytest.mark.parametrize(
    ("variable", "advice"),
    [
        ("ACCELERATE_USE_MEGATRON_LM", "ddp.yaml"),
        ("FSDP_OFFLOAD_PARAMS", "more processes"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "--gradient_checkpointing"),
    ],
)
def test_what_would_have_no_effect_is_refused(monkeypatch, variable, advice):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(OptionError, match=advice):
        cli.parse(["--config", "demo"])


def test_fsdp_means_the_base_model(monkeypatch):
    assert not cli.parse(["--config", "demo"]).model.shard_base_model
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert cli.parse(["--config", "demo"]).model.shard_base_model


@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeed_means_what_is_learnt_and_with_zero3_the_base_model(monkeypatch, stage):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")
    config = cli.parse(["--config", "demo"])
    assert config.optimizer.shard_optimizer
    assert config.model.shard_base_model == (stage == "3")


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "1", "zero_stage must be 2 or 3; found '1'"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu", "offload_optimizer_device is"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme", "start more processes"),
        ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds.json", "deepspeed_config_file is 'ds.json'"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "give --gradient_accumulation_steps"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "--clip_grad_mode norm"),
    ],
)
def test_of_deepspeed_too_what_would_have_no_effect_is_refused(
    monkeypatch, variable, value, advice
):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv(variable, value)
    with pytest.raises(OptionError, match=advice):
        cli.parse(["--config", "demo"])


@pytest.mark.usefixtures("fresh_accelerate")
def test_one_process_has_nobody_to_deal_out_to(model, pictures, tmp_path, capsys):
    flags = runs.settings(model, pictures, tmp_path, shard_base_model=True)
    assert runs.train_here(flags) == 2
    assert "shard_base_model deals the base model out to several" in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_accelerate")
def test_auto_begins_goes_on_and_is_done(model, pictures, tmp_path, capsys):
    flags = runs.settings(
        model, pictures, tmp_path, max_train_steps=2, resume_from_checkpoint="auto"
    )
    run = tmp_path / "run"
    assert runs.train_here(flags) == 0
    assert "resumed" not in capsys.readouterr().out
    assert runs.train_here([*flags, "--max_train_steps", "4"]) == 0
    assert "step-00000002 at step 2" in capsys.readouterr().out
    done = (run / "run.pt").read_bytes()
    assert runs.train_here([*flags, "--max_train_steps", "4"]) == 0
    assert (run / "run.pt").read_bytes() == done

    for manifest in run.glob("checkpoints/*/MANIFEST.json"):
        manifest.write_text("{}")
    assert runs.train_here(flags) == 4  # damaged: never silently a new run
    assert "holds no valid checkpoint (2 damaged)" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    assert runs.train_here(flags) == 2  # never over a finished file
    assert "holds a run already (run.pt)" in capsys.readouterr().err
