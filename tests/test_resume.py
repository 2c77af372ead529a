"""Stopped and resumed equals not stopped, to the bit."""

import json
import shutil
import signal

import pytest

from hn.limits.saving import CHANGEABLE, FIXED
from tests import runs, tiny
from tests.zygote import Kill

RANDOM = {
    "gradient_accumulation_steps": 2,
    "latent_sampling": "random",
    "random_crop": True,
    "random_flip": True,
    "shuffle_tags": True,
    "caption_dropout": 0.2,
    "noise_offset": 0.05,
    "snr_gamma": 5.0,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
}
VARIANTS = {
    "plain": {},
    "random": RANDOM,
    "dropout": {"dropout_structure": (0, 0.3, 0), "activation_func": "rrelu"},
    "checkpointed-bf16": {"gradient_checkpointing": True, "mixed_precision": "bf16"},
    "sgd-momentum": {"optimizer": "SGD", "optimizer_args": ["momentum=0.9"]},
    "captions": {
        "wildcards": True,
        "caption_lines": True,
        "keep_separator": "|||",
        "keep_tags": 1,
        "tag_dropout": 0.3,
        "caption_prefix": "{a|the} ",
        "caption_suffix": ", sks",
        "missing_caption": "filename",
        **RANDOM,
    },
    "alpha": {"use_alpha_weights": True, "resolution": (24, 16), **RANDOM},
    "average-lion": {
        "use_ema": True,
        "optimizer": "lion_pytorch.Lion",
        "max_weight_norm": 4,
        "width_learning_rates": ["24=0.5"],
        "loss_type": "huber",
        "loss_weighting": "debiased",
        "timestep_sampling": "logit_normal",
        "stratified_timesteps": True,
        "input_perturbation": 0.1,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 2,
    },
    "schedule-free": {
        "optimizer": "schedulefree.AdamWScheduleFree",
        "residual_penalty": 0.1,
        "gradient_checkpointing": True,
        "multires_noise_iterations": 3,
        "timestep_range": [100, 900],
    },
    "prodigy": {"optimizer": "prodigyopt.Prodigy", "learning_rate": 1},
}


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_run_equals_uninterrupted_run(model, pictures, masked, worded, tmp_path, variant):
    """6 pictures in batches of 2 or 4: step 4 lies inside an epoch."""
    changes = VARIANTS[variant]
    pictures = {"alpha": masked, "captions": worded}.get(variant, pictures)
    whole = runs.settings(model, pictures, tmp_path / "whole", checkpointing_steps=4, **changes)
    assert runs.train_here(whole) == 0
    reference = tmp_path / "whole/run"

    stopped = tmp_path / "stopped/run"
    flags = runs.settings(model, pictures, tmp_path / "stopped", checkpointing_steps=4, **changes)
    assert runs.train_here(flags) == 0
    for path in sorted((stopped / "checkpoints").glob("step-*"))[1:]:  # back to step 4
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir()
    assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 0

    written = [*reference.glob("run*"), *reference.glob("checkpoints/step-00000006/resume/*")]
    assert len(written) >= 3
    for path in written:
        assert (stopped / path.relative_to(reference)).read_bytes() == path.read_bytes()
    assert runs.losses(stopped) == runs.losses(reference)


@pytest.mark.usefixtures("fresh_accelerate")
def test_same_run_twice_gives_the_same_bytes(model, pictures, tmp_path):
    for folder in ("one", "two"):
        assert runs.train_here(runs.settings(model, pictures, tmp_path / folder, **RANDOM)) == 0
    for name in ("run.pt", "run.safetensors", "hypernetwork_loss.csv"):
        assert (tmp_path / "one/run" / name).read_bytes() == (
            tmp_path / "two/run" / name
        ).read_bytes()


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_damaged_checkpoint_is_passed_over_by_name(model, pictures, tmp_path, capsys):
    flags = runs.settings(model, pictures, tmp_path, checkpointing_steps=2)
    assert runs.train_here(flags) == 0
    weights = tmp_path / "run/checkpoints/step-00000006/run-6.safetensors"
    expected = weights.read_bytes()
    damaged = bytearray(expected)
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 0
    printed = capsys.readouterr().out
    assert "step-00000006 is passed over: changed or missing: run-6.safetensors" in printed
    assert runs.status(tmp_path / "run")["rejected_checkpoints"] == {
        "step-00000006": "changed or missing: run-6.safetensors"
    }
    assert "resumed from" in printed
    assert "step-00000004" in printed
    assert weights.read_bytes() == expected


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"train_batch_size": 3}, "global_batch: 2 then, 3 now"),
        ({"use_alpha_weights": True}, "use_alpha_weights: False then, True now"),
        ({"resize_mode": "stretch"}, "resize_mode: 'crop' then, 'stretch' now"),
        ({"resolution": (16, 24)}, "resolution: [16] then, [16, 24] now"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(model, pictures, tmp_path, capsys, changes, named):
    assert runs.train_here(runs.settings(model, pictures, tmp_path)) == 0
    flags = runs.settings(model, pictures, tmp_path, max_train_steps=8, **changes)
    assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 2
    assert named in capsys.readouterr().err
    assert runs.status(tmp_path / "run")["state"] == "failed"


@pytest.mark.usefixtures("fresh_accelerate")
def test_what_is_learnt_and_how_stays(model, pictures, tmp_path, capsys):
    """A rate may change; what the optimizer's saved state brings would win without a word."""
    assert runs.train_here(runs.settings(model, pictures, tmp_path, max_train_steps=2)) == 0
    for changes, named in (
        ({"snr_gamma": 5}, "snr_gamma: None then, 5.0 now"),
        ({"optimizer_args": ["weight_decay=0.1"]}, "optimizer_args: [] then, ['weight_decay=0.1']"),
        ({"width_learning_rates": ["24=2"]}, "width_learning_rates: [] then, ['24=2'] now"),
        ({"use_ema": True}, "use_ema: False then, True now"),
    ):
        flags = runs.settings(model, pictures, tmp_path, max_train_steps=4, **changes)
        assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 2
        assert named in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_accelerate")
def test_what_may_change_is_named_and_goes_on(model, pictures, tmp_path, capsys):
    """Pictures, seed and loss; never what the saved state is of."""
    flags = runs.settings(model, pictures, tmp_path, max_train_steps=2)
    assert runs.train_here(flags) == 0
    state = json.loads((tmp_path / "run/checkpoints/step-00000002/state.json").read_text())
    assert set(state["fingerprint"]) <= {*CHANGEABLE, *FIXED}
    fewer = tiny.make_pictures(tmp_path / "fewer", 4)
    changes = {"max_train_steps": 4, "seed": 1, "snr_gamma": 5, "resume_from_checkpoint": "latest"}
    flags = runs.settings(model, fewer, tmp_path, **changes)
    assert runs.train_here([*flags, "--allow_change", "seed"]) == 2
    refused = capsys.readouterr().err
    assert "or allow it: --allow_change snr_gamma:" in refused
    assert "seed: " not in refused
    assert runs.train_here([*flags, "--allow_change", "seed", "snr_gamma"]) == 2
    assert "or allow it: --allow_change pictures:" in capsys.readouterr().err
    assert runs.train_here([*flags, "--allow_change", "seed", "pictures", "snr_gamma"]) == 0
    out = capsys.readouterr().out
    for line in (
        "allow_change: other than there is",
        "seed: 0 then, 1 now",
        "snr_gamma: None then",
    ):
        assert line in out
    assert len(runs.losses(tmp_path / "run")) == 4
    state = json.loads((tmp_path / "run/checkpoints/step-00000004/state.json").read_text())
    assert state["fingerprint"]["seed"] == 1


@pytest.mark.usefixtures("fresh_accelerate")
def test_more_steps_another_split_and_another_rate_go_on(model, pictures, tmp_path):
    """2 x 1 or 1 x 2 pictures are the same global batch; of two rates the new one counts."""
    short = runs.settings(model, pictures, tmp_path / "a", max_train_steps=3)
    assert runs.train_here(short) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    more = {"max_train_steps": 6, "learning_rate": "1e-3:5, 1e-4"}
    other = {"train_batch_size": 1, "gradient_accumulation_steps": 2}
    for folder, split in (("a", {}), ("b", other)):
        flags = runs.settings(model, pictures, tmp_path / folder, **more, **split)
        assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 0
    whole = runs.settings(model, pictures, tmp_path / "whole", **more)
    assert runs.train_here(whole) == 0
    assert runs.same_tensors(tmp_path / "a/run/run.pt", tmp_path / "whole/run/run.pt")
    assert runs.losses(tmp_path / "a/run") == runs.losses(tmp_path / "whole/run")
    assert runs.losses(tmp_path / "b/run") == pytest.approx(
        runs.losses(tmp_path / "whole/run"), rel=1e-5
    )


LONG = {"max_train_steps": 40, "checkpointing_steps": 5, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def unstopped(model, pictures, tmp_path_factory):
    """The result of such a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("unstopped")
    runs.forget_accelerate()
    assert runs.train_here(runs.settings(model, pictures, folder, **LONG)) == 0
    return (folder / "run/run.pt").read_bytes()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("fresh_accelerate")
def test_a_stopped_process_resumes_to_the_same_bits(
    zygote, model, pictures, tmp_path, number, unstopped
):
    """SIGTERM saves and leaves with 75; after SIGKILL the last checkpoint is there."""
    flags = runs.settings(model, pictures, tmp_path, **LONG)
    folder = tmp_path / "run"
    ended = zygote.run(flags, tmp_path, kill=Kill(0.02, saves=2, number=number))
    assert ended.codes == [75 if number == signal.SIGTERM else -signal.SIGKILL], ended.said
    if number == signal.SIGTERM:
        status = runs.status(folder)
        assert status["state"] == "interrupted"
        assert status["exit_code"] == 75
        assert (folder / f"checkpoints/step-{status['step']:08d}").is_dir()
    assert not (folder / "run.pt").exists()
    assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 0
    assert (folder / "run.pt").read_bytes() == unstopped
