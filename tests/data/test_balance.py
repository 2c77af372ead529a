"""As many pictures for regularization as to learn from."""

import numpy as np
import pytest

from hn.data.pictures.balance import balanced, in_words


def entries(training: int, prior: int, repeats: int = 1):
    """So many pictures of each kind, mixed; those to learn from come up `repeats` times."""
    regularization = np.arange(training + prior) >= training
    np.random.default_rng(0).shuffle(regularization)
    return np.where(regularization, 1, repeats).astype(np.int32), regularization


@pytest.mark.parametrize(
    ("training", "prior", "repeats", "expected", "said"),
    [
        (60, 12, 1, (1, 5), "12 pictures x 5 beside 60"),
        (20, 12, 3, (3, 5), "12 pictures x 5 beside 60"),
        (7, 7, 1, (1, 1), "7 pictures x 1 beside 7"),
        (12, 60, 1, (5, 1), "60 pictures x 1 beside 12 x 5"),
        (6, 60, 2, (10, 1), "60 pictures x 1 beside 12 x 5"),
        (2, 5, 1, (3, 1), "5 pictures x 1 beside 2 x 3"),  # halves go up
        (5, 2, 1, (1, 3), "2 pictures x 3 beside 5"),
        (4, 3, 1, (1, 1), "3 pictures x 1 beside 4"),
        (1, 1000, 1, (1000, 1), "1000 pictures x 1 beside 1 x 1000"),
    ],
)
def test_the_fewer_kind_is_repeated(training, prior, repeats, expected, said):
    counts, regularization = entries(training, prior, repeats)
    found = balanced(counts, regularization)
    assert set(found[~regularization].tolist()) == {expected[0]}
    assert set(found[regularization].tolist()) == {expected[1]}
    assert in_words(counts, regularization) == f"regularization: {said}"
    shares = found[~regularization].sum(), found[regularization].sum()
    assert 2 / 3 <= shares[0] / shares[1] <= 3 / 2


def test_folders_of_one_kind_keep_their_proportions():
    regularization = np.array([False, False, True, True])
    found = balanced(np.array([1, 3, 1, 2]) * [4, 4, 1, 1], regularization)
    assert found.tolist() == [4, 12, 5, 10]


@pytest.mark.parametrize("regularization", [False, True])
def test_one_kind_alone_stays_as_it_is(regularization):
    repeats = np.array([1, 4], np.int32)
    assert balanced(repeats, np.full(2, regularization)).tolist() == [1, 4]


def test_large_numbers_do_not_overflow():
    repeats = np.array([1_000_000] * 4000 + [1], np.int32)
    regularization = np.array([False] * 4000 + [True])
    assert balanced(repeats, regularization)[-1] == 4_000_000_000
