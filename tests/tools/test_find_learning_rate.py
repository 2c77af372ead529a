"""The range test: what it suggests of a curve, and the tool on a tiny model."""

import json
import math
import re
from itertools import pairwise

import pytest

from hn.evaluation.range_test import EVERY, HIGHEST, LOWEST, Reading, ramp, read, steepest
from tests import runs

COUNT = 101


def test_the_rates_rise_by_equal_factors_from_end_to_end():
    rates = [ramp(step, COUNT) for step in range(COUNT)]
    assert (rates[0], rates[-1]) == pytest.approx((LOWEST, HIGHEST))
    factors = [after / before for before, after in pairwise(rates)]
    assert factors == pytest.approx([factors[0]] * (COUNT - 1))


def test_the_rate_of_the_steepest_fall_is_suggested_and_divergence_ends_it():
    """A loss that falls as a logistic curve around 1e-3, and explodes from 1e-2 on."""
    taken = []

    def steps():
        for step in range(10**9):
            taken.append(step)
            yield step

    def measure():
        rate = ramp(taken[-1], COUNT) if taken else LOWEST
        explosion = 100.0 if rate > 1e-2 else 0.0
        return 1 / (1 + (rate / 1e-3) ** 2) + explosion

    found = read(steps(), COUNT, measure)
    step = (HIGHEST / LOWEST) ** (EVERY / (COUNT - 1))
    assert 1e-3 / step <= found.suggestion <= 1e-3 * step
    assert ramp(taken[-1] - EVERY, COUNT) <= 1e-2 < ramp(taken[-1], COUNT)
    assert max(reading.rate for reading in found.readings) <= 1e-2
    assert f"{found.suggestion:.1e}" in str(found)


def test_a_loss_that_is_no_number_ends_it_and_one_that_rises_suggests_nothing():
    losses = iter([1.0, 1.1, 1.2, math.nan])
    found = read(range(COUNT), COUNT, lambda: next(losses))
    assert [reading.loss for reading in found.readings] == [1.0, 1.1, 1.2]
    assert found.suggestion is None
    assert "no rate made the loss fall" in str(found)
    assert steepest([Reading(1e-6, 1.0)]) is None


def test_the_tool_writes_a_curve_and_trains_nothing(
    run, model, pictures, tmp_path, fresh_accelerate
):
    flags = runs.settings(model, pictures, tmp_path, train_batch_size=4)
    result = run("find_learning_rate", *flags, "--steps", 12)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "run/learning_rate.json").read_text())
    assert found["readings"][0]["rate"] == LOWEST
    assert all(it["loss"] > 0 for it in found["readings"])
    page = (tmp_path / "run/learning_rate.html").read_text()
    assert len(re.findall(r"<circle", page)) == len(found["readings"])
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written == {"learning_rate.html", "learning_rate.json", "cache"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "5"], "steps must be at least 10"),
        (["--optimizer", "prodigyopt.Prodigy"], "there is nothing to find for it"),
    ],
)
def test_what_has_no_rate_to_find_is_refused(
    run, model, pictures, tmp_path, more, message, fresh_accelerate
):
    result = run("find_learning_rate", *runs.settings(model, pictures, tmp_path), *more)
    assert result.returncode == 2
    assert message in result.stderr
