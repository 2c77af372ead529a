"""Signals to launchers, or their sudden end: saved at the next step, nobody left behind."""

import itertools
import os
import signal
import time

import pytest

from hn.errors import OptionError
from hn.limits.processes import parse_duration
from tests import runs

LAUNCHERS = {
    "accelerate": [*runs.ACCELERATE, "--num_processes", "1", runs.SCRIPT],
    "accelerate-2": [
        *runs.ACCELERATE,
        *["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
        runs.SCRIPT,
    ],
    "torchrun-2": runs.TORCHRUN,
}
SIGNALS = {
    "TERM-launcher": (os.kill, signal.SIGTERM),
    "TERM-group": (os.killpg, signal.SIGTERM),
    "INT-group": (os.killpg, signal.SIGINT),
    "KILL-launcher": (os.kill, signal.SIGKILL),
}
SHORT = {("accelerate", "KILL-launcher"), ("accelerate-2", "TERM-group")}


@pytest.mark.parametrize(
    ("launcher", "how"),
    [
        pytest.param(*cell, marks=[] if cell in SHORT else pytest.mark.slow)
        for cell in itertools.product(LAUNCHERS, SIGNALS)
    ],
)
def test_saved_at_the_next_step_and_nobody_left(model, pictures, tmp_path, launcher, how):
    """A step takes about a second here."""
    flags = runs.settings(
        model, pictures, tmp_path, max_train_steps=100000, gradient_accumulation_steps=48
    )
    run, (send, number) = tmp_path / "run", SIGNALS[how]
    with runs.start(LAUNCHERS[launcher], flags) as process:
        runs.wait_for(run / "metrics.jsonl")
        before = len(runs.losses(run))
        send(process.pid, number)
        process.communicate(timeout=60)
    end = time.monotonic() + 60
    while (left := runs.processes_with(str(tmp_path))) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []
    status = runs.status(run)
    assert status["state"] == "interrupted"
    assert status["exit_code"] == 75
    assert status["reason"].startswith("SIG")
    assert status["step"] <= before + 2  # the one that ran, and one if it ended just then
    assert (run / f"checkpoints/step-{status['step']:08d}/MANIFEST.json").exists()
    assert status["resume_command"].endswith("--resume_from_checkpoint latest")


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_end_of_its_time_is_as_a_signal(model, pictures, tmp_path):
    flags = runs.settings(model, pictures, tmp_path, max_train_steps=100000)
    assert runs.train_here([*flags, "--max_train_time", "2s"]) == 75
    status = runs.status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("interrupted", 75)
    assert status["reason"] == "max_train_time is over"
    assert (tmp_path / f"run/checkpoints/step-{status['step']:08d}/MANIFEST.json").exists()


@pytest.mark.parametrize("text", ["", "2", "30m2h", "0s", "1.5h", "-1h"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(OptionError, match=r"max_train_time must be .* such as 2h30m"):
        parse_duration(text)


def test_times():
    assert parse_duration("1d2h3m4s") == 93784
    assert parse_duration("90s") == 90
    assert parse_duration(None) == float("inf")
