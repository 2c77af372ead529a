"""What an evaluation must show, on real runs of the demo; minutes each, so marked slow."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hn import launch
from hn.build.evaluated import build_evaluated
from hn.evaluation.bench import Bench, Options
from hn.evaluation.candidates import Candidate, find_candidates
from hn.evaluation.measured import Losses
from tests import runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ELSEWHERE = 10_000  # another seed, so that the search sees none of the evaluation's noise


def train(output: Path, *flags: str) -> Path:
    command = [*runs.PYTHON, "--config", "demo", "--output_dir", str(output), *flags]
    command += ["--validation_steps", "0", "--report_to", "none", "--allow_high_learning_rate"]
    subprocess.run(command, cwd=runs.ROOT, check=True, capture_output=True)
    return output / flags[flags.index("--name") + 1]


def evaluate(run: Path, *flags: str) -> dict:
    tool = [sys.executable, str(runs.ROOT / "tools/evaluate.py"), str(run), *flags]
    subprocess.run(tool, cwd=runs.ROOT, check=True, capture_output=True)
    return json.loads((run / "evaluation/report.json").read_text())


def searched(run: Path, samples: int) -> dict[tuple[int, float], float]:
    """The gain of each checkpoint at strength 1 and of each strength of the last, by far more
    draws of other noise.
    """
    options = Options(samples=samples)
    bench = build_evaluated(*launch.reopen(run), options).bench
    bench = replace(bench, seed=bench.seed + ELSEWHERE)
    candidates = find_candidates(run)
    points = {(it.step, 1.0): it for it in candidates}
    points |= {(candidates[-1].step, it): candidates[-1] for it in options.strengths}
    return {point: _gain(bench, candidate, point[1]) for point, candidate in points.items()}


def _gain(bench: Bench, candidate: Candidate, strength: float) -> float:
    assert bench.held_out is not None
    net = candidate.load()
    with bench.reading(net, strength) as predict:
        now = bench.losses(bench.held_out, predict, f"{candidate.label} at {strength}")
    with bench.reading(net, 0.0) as predict:
        base = bench.losses(bench.held_out, predict, "base model")
    return Losses(now, base).comparison.gain


def test_the_pick_is_as_good_as_the_best_of_an_exhaustive_search(tmp_path):
    """Within 2 % of the gain that ten times as many samples find; nothing is flagged."""
    run = train(tmp_path, "--name", "demo", "--checkpointing_steps", "50")
    found = evaluate(run)
    assert [row["flags"] for row in found["checkpoints"]] == [[]] * 6
    gains = searched(run, samples=160)
    pick = (found["recommendation"]["step"], found["recommendation"]["strength"])
    assert gains[pick] >= 0.98 * max(gains.values())
    style = [point["style"] for point in found["sweep"]["points"]]
    assert style == sorted(style)


def test_a_run_that_learnt_few_pictures_by_heart_is_flagged(tmp_path):
    """Four pictures for 600 steps at six times the rate."""
    data = tmp_path / "few"
    data.mkdir()
    from hn import demo

    shown, held_out = demo.write_pictures(tmp_path / "pictures")
    for path in [it for number in range(4) for it in shown.glob(f"{number:04d}.*")]:
        (data / path.name).write_bytes(path.read_bytes())
    run = train(
        tmp_path, "--name", "few", "--train_data_dir", str(data), "--validation_data_dir",
        str(held_out), "--learning_rate", "3e-3", "--lr_scheduler", "constant",
        "--max_train_steps", "600", "--checkpointing_steps", "200", "--train_batch_size", "4",
    )  # fmt: skip
    found = evaluate(run)
    last = found["checkpoints"][-1]
    assert "memorising" in last["flags"]
    flagged = [row["step"] for row in found["checkpoints"] if row["flags"]]
    if len(flagged) < len(found["checkpoints"]):
        assert found["recommendation"]["step"] not in flagged


def test_a_run_that_diverged_is_never_recommended(tmp_path):
    """Twenty good steps, then a rate far too high; not so high that the guard ends the run."""
    run = train(
        tmp_path, "--name", "diverged", "--learning_rate", "5e-4:20, 100", "--lr_scheduler",
        "constant", "--max_train_steps", "30", "--checkpointing_steps", "10",
        "--train_batch_size", "8",
    )  # fmt: skip
    found = evaluate(run)
    assert "diverged" in found["checkpoints"][-1]["flags"]
    assert found["checkpoints"][-1]["rank"] == 3
    assert found["recommendation"]["step"] == 20
