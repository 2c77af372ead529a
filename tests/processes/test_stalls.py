"""A process that hangs, is stopped or raises ends all of them, and they say which it was."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from hn.data.batches import Batches
from hn.training.watching.peers import Sign, judge, look_at
from hn.training.watching.watch import TICK, Pulse
from tests import runs

TIMEOUT = 6
LATEST = TIMEOUT + 20  # seconds; 10 more than the time-out suffice where no other test runs beside
SCRIPT = str(Path(__file__).parent / "faulty.py")
TWO, ALONE = [*runs.TORCHRUN[:-1], SCRIPT], [*runs.PYTHON[:-1], SCRIPT]


def assert_failed(folder, error, named, place):
    """It is said which process failed, where, and what to do."""
    status = runs.status(folder / "run")
    assert status["state"] == "failed"
    assert status["exit_code"] == 7
    assert named in status["reason"]
    assert "Resume from the last checkpoint" in status["reason"]
    assert f"error: {named}" in error
    assert place in error


def hang(_folder, rank):
    """Let one process of the zygote do nothing more where step 3 asks for pictures."""
    at = Batches.at

    def hanging(self, step):
        if step == 3 and rank == 1:
            print(f"hung at {time.monotonic()}", flush=True)
            time.sleep(1000)
        return at(self, step)

    Batches.at = hanging


def test_a_process_that_hangs_ends_all_in_time_and_is_named(zygote, model, pictures, tmp_path):
    flags = runs.settings(
        model, pictures, tmp_path, max_train_steps=1000, process_timeout_s=TIMEOUT
    )
    ended = zygote.run(flags, tmp_path, world=2, before=hang)
    (began,) = re.findall(r"hung at ([\d.]+)", ended.said)
    assert time.monotonic() - float(began) < LATEST, ended.said
    assert ended.codes == [7, 7]
    assert_failed(tmp_path, ended.said, "process 1", "test_stalls.py:")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "fault", "rank", "named"),
    [
        (TWO, "hang", "1", "process 1"),
        (TWO, "hang", "0", "process 0"),
        (TWO, "fifo", "1", "process 1"),
        (TWO, "stop", "1", "process 1"),
        (TWO, "stop", "0", "process 0"),
        (TWO, "raise", "1", "process 1"),
        (ALONE, "fifo", "0", "nothing has happened"),
    ],
)
def test_all_end_in_time_and_name_it(model, pictures, tmp_path, command, fault, rank, named):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    flags = runs.settings(
        model, pictures, tmp_path, max_train_steps=1000, process_timeout_s=TIMEOUT
    )
    with runs.start([*command, fault, rank], flags, FIFO=str(fifo)) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("fault: "))
        began = time.monotonic()
        if fault == "stop":
            os.kill(int(line.split()[1]), signal.SIGSTOP)
        _, error = process.communicate(timeout=120)
        took = time.monotonic() - began
    assert took < LATEST, error
    assert runs.processes_with(str(tmp_path)) == []
    place = {"raise": "planted", "stop": "no sign of life"}.get(fault, "faulty.py:")
    assert_failed(tmp_path, error, named, place)


def sign(number, *, waits=False, over=False):
    return Sign(number, 120.0, "somewhere.py:1 (read)", waits, over, "node", 1)


def test_who_is_to_blame():
    """Who gives no sign of life; else who does not wait for others; else nobody alone."""
    before = {0: sign(1, waits=True), 1: sign(1, waits=True), 2: sign(1)}
    now = {0: sign(4, waits=True), 1: sign(1, waits=True), 2: sign(4)}
    assert judge(before, now, 3).silent == (1,)
    assert judge(before, now, 4).silent == (1, 3)
    assert judge(before, {**now, 1: sign(1, over=True)}, 3).reason.startswith("process 2 (node")
    now |= {1: sign(4, waits=True)}
    verdict = judge(before, now, 3)
    assert verdict.reason.endswith("has done nothing for 120 s, at somewhere.py:1 (read)")
    now |= {2: sign(4, waits=True)}
    assert judge(before, now, 3).reason.startswith("the processes wait for each other: process 0")


def looks(pulse, count, forwards=0):
    """What so many looks find, after so many forwards."""
    for _ in range(forwards):
        pulse.count(torch.nn.Identity(), ())
    return [pulse.stalled() for _ in range(count)]


def test_how_long_nothing_may_happen():
    """The first forward may take ten times as long, and any later one ten times the longest."""
    per_look = 10 / TICK
    pulse = Pulse(10)
    assert not any(looks(pulse, int(10 * per_look)))
    assert looks(pulse, 1) == [True]
    assert not any(looks(pulse, int(10 * per_look), forwards=1))
    assert not any(looks(pulse, int(per_look) + 1, forwards=1))
    slow = Pulse(10)
    assert not any(looks(slow, int(4 * per_look), forwards=1))  # a step of 40 seconds
    assert not any(looks(slow, int(39 * per_look), forwards=1))
    assert looks(slow, int(per_look))[-1]


def test_where_a_process_is():
    place, waits = look_at(sys._getframe())
    assert place.startswith("tests/processes/test_stalls.py:")
    assert place.endswith("(test_where_a_process_is)")
    assert not waits
