"""The range test: what it suggests of a curve, and the flag on a tiny model."""

import json
import math
import re
from itertools import pairwise

import pytest

from hn import cli
from hn.errors import OptionError
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


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_flag_writes_a_curve_and_trains_nothing(model, pictures, tmp_path, capsys):
    flags = runs.settings(model, pictures, tmp_path, train_batch_size=4, find_learning_rate=12)
    assert runs.train_here(flags) == 0
    found = json.loads((tmp_path / "run/learning_rate.json").read_text())
    assert found["readings"][0]["rate"] == LOWEST
    assert all(it["loss"] > 0 for it in found["readings"])
    page = (tmp_path / "run/learning_rate.html").read_text()
    assert len(re.findall(r"<circle", page)) == len(found["readings"])
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written == {"learning_rate.html", "learning_rate.json", "cache"}
    assert "curve          " in capsys.readouterr().out


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_training_begins_in_the_folder_of_its_curve(model, pictures, tmp_path):
    """The second in a process of its own, which says what it imports."""
    flags = runs.settings(model, pictures, tmp_path, max_train_steps=2)
    assert runs.train_here([*flags, "--find_learning_rate", "10"]) == 0
    assert not (tmp_path / "run/status.json").exists()
    trained = runs.run(runs.PYTHON, flags, PYTHONPROFILEIMPORTTIME="1")
    assert trained.returncode == 0, trained.stderr
    imported = re.findall(r"import time: .*\| +(\S+)$", trained.stderr, re.MULTILINE)
    assert "diffusers" in imported
    assert not {"bitsandbytes", "peft"} & set(imported)
    assert "latents: 6 of 6 pictures were in the cache" in trained.stdout
    assert (tmp_path / "run/run.pt").exists()


@pytest.mark.usefixtures("fresh_accelerate")
def test_what_has_no_rate_to_find_is_refused(model, pictures, tmp_path, capsys):
    changes = {"optimizer": "prodigyopt.Prodigy", "find_learning_rate": 12}
    assert runs.train_here(runs.settings(model, pictures, tmp_path, **changes)) == 2
    assert "there is nothing to find for it" in capsys.readouterr().err


def test_too_few_rates_are_refused(model, pictures, tmp_path):
    with pytest.raises(OptionError, match="find_learning_rate must be at least 10 rates"):
        cli.parse(runs.settings(model, pictures, tmp_path, find_learning_rate=5))
