"""What launchers ask for, and jobs that are started again by themselves."""

import shutil

import pytest

from hn import cli
from hn.errors import OptionError
from tests import runs


@pytest.mark.parametrize(
    ("variable", "advice"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "fsdp2.yaml"),
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
