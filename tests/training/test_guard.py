"""What is not a number changes nothing; what diverges goes back, and on with lower rates."""

import json
import shutil
import sys

import pytest
import torch
from accelerate import Accelerator

import hn
from hn.errors import NumericsError
from hn.training.keeping.recovery import choose
from hn.training.schedule import Schedule, Stage
from hn.training.state import TrainingState
from hn.training.watching import guard, health
from hn.training.watching.health import LEAST, RECENT, WINDOW, Health
from hn.training.watching.readings import Reading
from tests import faults, runs

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def finite(path) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in hn.load(path).tensors().values())


def test_a_step_that_is_not_finite_changes_no_bit(model, pictures, tmp_path, monkeypatch, capsys):
    kinds = {1: "loss", 3: "infinite", 5: "grad", 7: "latent"}
    faults.inject(kinds.get, monkeypatch.setattr)
    noted = faults.watch(monkeypatch.setattr)
    flags = runs.settings(model, pictures, tmp_path, max_train_steps=9, use_ema=True)
    assert runs.train_here(flags) == 0
    assert noted == [(step, step not in kinds, step not in kinds) for step in range(9)]
    said = capsys.readouterr().err
    for step, kind in kinds.items():
        what = "gradient" if kind == "grad" else "loss"
        assert f"step {step}: the {what} is not finite (process 0: ('" in said
    assert said.count(".png')); the step is skipped") == 4
    assert runs.status(tmp_path / "run")["skipped_steps"] == 4
    rows = runs.metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "loss" in row] == [1, 3, 5, 7, 9]
    assert [row.get("skipped_steps", 0) for row in rows[:9]] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert finite(tmp_path / "run/run.pt")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="ddp"),
        pytest.param(
            {"shard_optimizer": True, "shard_base_model": True},
            id="zero3",
            marks=[pytest.mark.slow, runs.NEEDS_DEEPSPEED],
        ),
    ],
)
def test_two_processes_agree_on_what_one_of_them_saw(zygote, model, pictures, tmp_path, changes):
    """A bad loss, gradient and latent on either process; then a weight that stays bad on either."""
    faulty = {
        0: {1: "loss", 3: "grad", 5: "latent", 14: "weight"},
        1: {7: "infinite", 9: "grad", 11: "latent", 20: "weight"},
    }
    changes = {"max_train_steps": 24, "checkpointing_steps": 3, "use_ema": True} | changes
    flags = runs.settings(model, pictures, tmp_path, **changes)
    ended = zygote.run(flags, tmp_path, 2, faults=faulty)
    assert ended.codes == [0, 0], ended.said
    noted = [json.loads((tmp_path / f"noted-{rank}").read_text()) for rank in (0, 1)]
    assert noted[0] == noted[1]
    # three in a row: back to 9, since after 11, which was skipped, nothing is saved; then to 18
    steps = [*range(17), *range(9, 23), *range(18, 24)]
    assert [step for step, _, _ in noted[0]] == steps
    skipped = [1, 3, 5, 7, 9, 11, 14, 15, 16, 20, 21, 22]
    assert [step for step, taken, _ in noted[0] if not taken] == skipped
    assert all(taken == changed for _, taken, changed in noted[0])
    for line in (
        "step 1: the loss is not finite (process 0: (",
        "step 7: the loss is not finite (process 1: (",
        "step 16: the loss is not finite (process 0: (",
        "as in the 2 steps before: back to step 9",
        "step 22: the loss is not finite (process 1: (",
    ):
        assert line in ended.said
    gradient = ended.said.split("step 9: the gradient is not finite ")[1].splitlines()[0]
    assert gradient.count(".png'") == 4  # whose it was cannot be told, so all are named
    assert "; process 1: (" in gradient
    assert finite(tmp_path / "run/run-ema.pt")


def test_what_is_found_late_ends_in_the_same_bits(model, pictures, tmp_path, monkeypatch, capsys):
    """As on CUDA, where a reading is looked at one step later: it goes back, and skips it."""

    class Late(Reading):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.is_here = False

    faults.inject(lambda step: "grad" if step in (3, 7) else None, monkeypatch.setattr)
    changes = {"max_train_steps": 10, "checkpointing_steps": 3, "validation_steps": 0}
    assert runs.train_here(runs.settings(model, pictures, tmp_path / "prompt", **changes)) == 0
    monkeypatch.setattr(guard, "Reading", Late)
    capsys.readouterr()
    assert runs.train_here(runs.settings(model, pictures, tmp_path / "late", **changes)) == 0
    assert "back to step 3; the step will be skipped" in capsys.readouterr().err
    prompt, late = tmp_path / "prompt/run", tmp_path / "late/run"
    assert (prompt / "run.pt").read_bytes() == (late / "run.pt").read_bytes()
    assert runs.losses(prompt) == runs.losses(late)
    assert runs.status(late)["skipped_steps"] == 2
    assert "rollbacks" not in runs.status(late)


def diverge(monkeypatch, kind="loss", first=5):
    """At the rates of the schedule every step from `first` on is lost; with lower ones none is."""
    rates = []
    set_rate = guard_rate = sys.modules["hn.training.optimizers"].set_rate
    monkeypatch.setattr(
        "hn.training.optimizers.set_rate",
        lambda optimizer, rate: rates.append(rate) or guard_rate(optimizer, rate),
    )
    assert set_rate is guard_rate
    faults.inject(
        lambda step: kind if step >= first and rates[-1] == 1e-3 else None, monkeypatch.setattr
    )
    return rates


def test_several_in_a_row_go_back_to_the_checkpoint_and_on_at_half_the_rate(
    model, pictures, tmp_path, monkeypatch, capsys
):
    """Killed on the way and resumed, it goes the same way to the same bits."""
    rates = diverge(monkeypatch)
    changes = {"max_train_steps": 10, "checkpointing_steps": 2, "use_ema": True}
    whole = runs.settings(model, pictures, tmp_path / "whole", **changes)
    assert runs.train_here(whole) == 0
    assert rates == [1e-3] * 8 + [5e-4] * 6  # steps 0 to 7, then 4 to 9
    assert "as in the 2 steps before: back to step 4; the rates" in capsys.readouterr().err
    status = runs.status(tmp_path / "whole/run")
    assert (status["skipped_steps"], status["rollbacks"]) == (3, 1)
    rows = [row for row in runs.metrics(tmp_path / "whole/run") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [row["learning_rate"] for row in rows] == [1e-3] * 4 + [5e-4] * 6

    for kept in (4, 8):
        folder = tmp_path / f"from-{kept}"
        shutil.copytree(tmp_path / "whole", folder)
        for path in folder.glob("run/checkpoints/step-*"):
            if int(path.name[5:]) > kept:
                shutil.rmtree(path)
        flags = runs.settings(model, pictures, folder, **changes)
        assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 0
        written = [*folder.glob("run/run*"), *folder.glob("run/checkpoints/*10/*/*")]
        assert len(written) == 6
        for path in written:
            assert path.read_bytes() == (tmp_path / "whole" / path.relative_to(folder)).read_bytes()
        assert runs.losses(folder / "run") == runs.losses(tmp_path / "whole/run")


def test_poisoned_weights_go_back_to_the_beginning_where_nothing_is_saved(
    model, pictures, tmp_path, monkeypatch
):
    diverge(monkeypatch, "weight", first=2)
    assert runs.train_here(runs.settings(model, pictures, tmp_path)) == 0
    status = runs.status(tmp_path / "run")
    assert (status["state"], status["rollbacks"]) == ("done", 1)
    assert finite(tmp_path / "run/run.pt")
    lower = runs.settings(model, pictures, tmp_path / "lower", learning_rate="5e-4")
    assert runs.train_here(lower) == 0
    assert runs.same_tensors(tmp_path / "run/run.pt", tmp_path / "lower/run/run.pt")


def test_a_run_that_cannot_be_saved_gives_up_and_leaves_good_files(
    model, pictures, tmp_path, monkeypatch, capsys
):
    faults.inject(lambda step: "loss" if step >= 4 else None, monkeypatch.setattr)
    flags = runs.settings(model, pictures, tmp_path, max_train_steps=20, checkpointing_steps=2)
    assert runs.train_here([*flags, "--max_rollbacks", "2"]) == 6
    error = capsys.readouterr().err
    assert "back to step 2" in error  # at 4 the weights are those that are of no use
    assert "back to step 0" in error  # the second time further
    assert "went back 2 times (max_rollbacks 2), which did not help" in error
    assert "step-00000002 is intact" in error
    assert runs.status(tmp_path / "run")["exit_code"] == 6
    assert not (tmp_path / "run/run.pt").exists()
    assert finite(tmp_path / "run/checkpoints/step-00000004/run-4.pt")
    # a lower rate of the user's is not cut any more
    assert "--resume_from_checkpoint latest" in runs.status(tmp_path / "run")["resume_command"]
    monkeypatch.undo()
    lower = [*flags, "--learning_rate", "1e-4", "--resume_from_checkpoint", "latest"]
    assert runs.train_here(lower) == 0
    rows = [row for row in runs.metrics(tmp_path / "run") if "loss" in row]
    assert [row["learning_rate"] for row in rows[-14:]] == [1e-4] * 14


def test_losses_far_above_what_they_were_go_back(model, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(health, "LEAST", 8)
    for module in (health, guard):
        monkeypatch.setattr(module, "RECENT", 10)
    rates = diverge(monkeypatch, "high", first=20)
    flags = runs.settings(model, pictures, tmp_path, max_train_steps=30, checkpointing_steps=4)
    assert runs.train_here(flags) == 0
    assert "of late, is above" in capsys.readouterr().err
    assert rates == [1e-3] * 25 + [5e-4] * 18  # half of the newest ten are high: back to 12
    assert runs.status(tmp_path / "run")["rollbacks"] == 1
    saved = json.loads((tmp_path / "run/checkpoints/step-00000028/state.json").read_text())
    assert len(saved["health"]["losses"]) == 28


def test_weights_that_are_not_finite_are_never_written(
    model, pictures, tmp_path, monkeypatch, capsys
):
    """Even if nothing was noticed before."""
    monkeypatch.setattr(guard.Guard, "takes", lambda self, state: not self._losses.clear())
    faults.inject(lambda step: "weight" if step == 5 else None, monkeypatch.setattr)
    flags = runs.settings(model, pictures, tmp_path, checkpointing_steps=2)
    assert runs.train_here(flags) == 6
    assert "is not finite, so nothing is written" in capsys.readouterr().err
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000004"]
    assert not list((tmp_path / "run").glob("run.*"))


def test_the_bound_follows_the_window_and_single_spikes_are_none_of_its_business():
    of_run, draw = Health(), torch.Generator().manual_seed(0)
    for step in range(3000):  # log-normal, as the losses of single pictures are
        of_run.note(float(torch.randn((), generator=draw).exp()))
        assert of_run.excess(10.0) is None, step
    assert len(of_run.losses) == WINDOW + RECENT
    for number in range(RECENT):
        of_run.note(1e4)
        assert (of_run.excess(10.0) is not None) == (number >= RECENT // 2), number


def test_float16_may_overflow_now_and_then():
    net = hn.Hypernetwork.create((8,), seed=0)
    state = TrainingState(net, torch.optim.SGD(net.parameters()))
    watch = guard.Guard(Accelerator(cpu=True), net, "none", Schedule((Stage(1.0, 9),)))
    for _ in range(24):
        watch.check(True, state)
    state.health.note(1.0)  # a step that was taken
    for _ in range(24):
        watch.check(True, state)
    with pytest.raises(NumericsError, match="float16 overflowed in 25 steps in a row"):
        watch.check(True, state)
    assert state.health.skipped == 49


def test_nothing_is_judged_too_early_and_what_hardly_varies_may_double():
    of_run = Health(losses=[1.0] * (LEAST + RECENT - 1))
    of_run.losses[-RECENT:] = [1e6] * RECENT
    assert of_run.excess(10.0) is None
    of_run = Health(losses=[1.0] * LEAST + [1.99] * RECENT)
    assert of_run.excess(10.0) is None
    of_run.losses[-RECENT:] = [2.01] * RECENT
    assert of_run.excess(10.0) == (2.01, 2.0)


@pytest.mark.parametrize(
    ("steps", "back_to", "expected"),
    [
        ([], None, None),
        ([2, 4], None, 4),
        ([2, 4], 4, 2),
        ([2, 4], 2, 4),
        ([4], 4, None),
        ([], 4, None),
        ([2, 4, 6], 4, 6),
    ],
)
def test_where_a_run_goes_back_to(steps, back_to, expected):
    assert choose(steps, back_to) == expected
