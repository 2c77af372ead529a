"""What a run does with held-out pictures: splits, the best checkpoint, the early end."""

import json

import pytest

from hn.errors import OptionError
from hn.evaluation.heldout import note
from hn.training.keeping.best import Best
from tests import runs


def split_run(model, pictures, output, **changes):
    values = {"validation_split": 2, "validation_steps": 2, "max_train_steps": 8}
    return runs.settings(model, pictures, output, **values | changes)


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_best_checkpoint_stays_and_is_linked_to(model, pictures, tmp_path, capsys):
    """At a rate that ruins the weights, the first measurement is the best."""
    flags = split_run(
        model, pictures, tmp_path, checkpointing_steps=2, checkpoints_total_limit=2,
        learning_rate="0.02:2, 0.5", keep_best=True,
    )  # fmt: skip
    assert runs.train_here(flags) == 0
    folder = tmp_path / "run/checkpoints"
    rows = {row["step"]: row for row in runs.metrics(tmp_path / "run") if "heldout_loss" in row}
    lowest = min(rows, key=lambda step: rows[step]["heldout_loss"])
    assert lowest == 2
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["best", "step-00000002", "step-00000006", "step-00000008"]
    assert (folder / "best").readlink().name == str((folder / "best").readlink()) == kept[1]
    assert "2 pictures held out, 4 to train on" in capsys.readouterr().out
    assert {"heldout_gain_0_250", "heldout_gain_750_1000"} <= set(rows[2])


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_without_progress_ends_and_goes_on_the_same_when_resumed(model, pictures, tmp_path):
    """Patience 2: 2 is noted, 4 and 6 are not lower. Stopped after 4, it ends at 6 all the same."""
    changes = {"learning_rate": "0.02:2, 0.5", "early_stop_patience": 2, "checkpointing_steps": 4}
    changes |= {"max_train_steps": 20, "keep_best": True}
    assert runs.train_here(split_run(model, pictures, tmp_path / "whole", **changes)) == 0
    whole = tmp_path / "whole/run"
    status = runs.status(whole)
    assert (status["state"], status["step"], status["exit_code"]) == ("done", 6, 0)
    assert "early_stop_patience 2" in status["reason"]
    assert "was at step 2" in status["reason"]
    assert (whole / "run.pt").is_file()

    flags = split_run(model, pictures, tmp_path / "stopped", **changes)
    assert runs.train_here([*flags, "--max_train_steps", "4"]) == 0
    assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 0
    stopped = tmp_path / "stopped/run"
    assert runs.status(stopped)["reason"] == status["reason"]
    states = [
        json.loads((folder / "checkpoints/step-00000006/state.json").read_text())
        for folder in (whole, stopped)
    ]
    assert states[0] == states[1]
    assert runs.same_tensors(whole / "run.pt", stopped / "run.pt")


@pytest.mark.usefixtures("fresh_accelerate")
def test_measuring_and_keeping_the_best_change_no_bit(model, pictures, tmp_path):
    """The same pictures held out, measured at every second step or never on the way."""
    often = split_run(model, pictures, tmp_path / "often", keep_best=True)
    assert runs.train_here(often) == 0
    assert runs.train_here(split_run(model, pictures, tmp_path / "seldom", validation_steps=0)) == 0
    first, second = tmp_path / "often/run", tmp_path / "seldom/run"
    assert runs.losses(first) == runs.losses(second)
    assert (first / "run.pt").read_bytes() == (second / "run.pt").read_bytes()


@pytest.mark.usefixtures("fresh_accelerate")
def test_another_split_is_another_run(model, pictures, tmp_path, capsys):
    flags = split_run(model, pictures, tmp_path, max_train_steps=2)
    assert runs.train_here(flags) == 0
    more = [*flags, "--max_train_steps", "4", "--resume_from_checkpoint", "latest"]
    assert runs.train_here([*more, "--validation_split", "0.5"]) == 2
    assert "validation_split: 2.0 then, 0.5 now" in capsys.readouterr().err


def test_what_is_better_beyond_doubt_resets_patience_and_what_is_not_does_not():
    best = Best()
    note(best, 10, [1.0, 2.0, 3.0])
    assert (best.step, best.loss, best.waited) == (10, 2.0, 0)
    note(best, 20, [0.9, 2.2, 2.7])  # lower, but who knows
    assert (best.step, best.waited) == (20, 1)
    assert best.reference == [1.0, 2.0, 3.0]
    note(best, 30, [float("nan"), 0.0, 0.0])
    assert (best.step, best.waited) == (20, 2)
    note(best, 40, [0.5, 1.5, 2.4])
    assert (best.step, best.waited) == (40, 0)
    assert best.reference == [0.5, 1.5, 2.4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation_split": 1.5}, "must be a share below 1 or a whole number of pictures"),
        ({"validation_split": 0.1, "validation_data_dir": "x"}, "both hold out: give one"),
        ({"validation_split": 0.1, "train_data_dir": None, "dataset_name": "a", "streaming": True},
         "streaming knows none"),
        ({"validation_split": 0.1, "train_data_dir": None, "cached_data_dir": "x"},
         "make the cache with it instead"),
        ({"keep_best": True}, "keep_best goes by the held-out loss: give validation_split"),
        ({"early_stop_patience": 3, "validation_split": 2, "validation_steps": 0},
         "give validation_steps"),
        ({"early_stop_patience": -1}, "early_stop_patience must not be negative"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_its_settings(tmp_path, changes, words):
    from hn import cli

    with pytest.raises(OptionError, match=words):
        cli.parse(runs.settings(tmp_path, tmp_path, tmp_path, **changes))
