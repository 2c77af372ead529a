"""Intervals against tables, and against drawing again and again."""

import math

import pytest
import torch

from hn.evaluation.intervals import of_mean, share_at_least, t_quantile

# Two-sided 95 %: the table in every textbook.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize("freedom", TABLE)
def test_the_quantiles_are_those_of_the_table(freedom):
    assert t_quantile(freedom) == pytest.approx(TABLE[freedom], abs=6e-4)


def test_many_degrees_of_freedom_come_to_the_normal_distribution():
    assert t_quantile(100_000) == pytest.approx(1.95996, abs=1e-4)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """2000 samples of 5 values: 95 % within three standard errors of that share."""
    draws = torch.randn((2000, 5), generator=torch.Generator().manual_seed(0))
    intervals = [of_mean(row) for row in draws]
    held = sum(it.low <= 0 <= it.high for it in intervals) / len(intervals)
    assert held == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000))


def test_one_value_has_no_interval():
    alone = of_mean(torch.tensor([2.0]))
    assert alone.mean == 2.0
    assert alone.low == -math.inf
    assert alone.as_json() == {}


def test_a_share_is_bounded_as_by_clopper_and_pearson():
    """One-sided: 0.95-quantiles of the beta distribution; n of n give 0.05 ** (1 / n)."""
    assert share_at_least(0, 10) == 0.0
    assert share_at_least(10, 10) == pytest.approx(0.05 ** (1 / 10), abs=1e-9)
    assert share_at_least(1, 10) == pytest.approx(1 - 0.95 ** (1 / 10), abs=1e-9)
