"""Memorisation, style, diversity, agreement and ranking, against their formulas."""

import pytest
import torch

from hn.evaluation import ranking, style
from hn.evaluation.agreement import agreement
from hn.evaluation.memorisation import distances, judge, leave_one_out, of_one_size
from hn.evaluation.ranking import DIVERGED, MEMORISING, Contender, ranked


def normal(count: int, seed: int, shape=(4, 6, 6)) -> torch.Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


def test_distances_are_root_mean_squares():
    some, others = normal(2, 0), normal(3, 1)
    expected = (some[:, None] - others[None]).square().mean((2, 3, 4)).sqrt()
    assert torch.allclose(distances(some, others).float(), expected, atol=1e-5)


def test_the_baseline_leaves_each_picture_out():
    trained = torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1, 1)
    assert leave_one_out(trained, None).tolist() == [1, 1, 4]
    assert leave_one_out(trained, torch.full((1, 1, 1, 1), 7.0)).tolist() == [1, 1, 4, 2]


def test_copies_are_memorised_and_new_pictures_are_not():
    trained, held_out = normal(20, 0), normal(20, 1)
    copies = judge(trained[:16] + 0.1 * normal(16, 2), trained, normal(16, 3), held_out)
    assert copies is not None and copies.flag
    assert copies.closer == 1.0
    assert copies.nearest == pytest.approx(0.1, abs=0.02)
    new = judge(normal(16, 4), trained, normal(16, 3), held_out)
    assert new is not None and not new.flag


def test_captions_that_say_it_all_are_no_memory():
    """Near to training pictures, but just as near to pictures that nobody can have memorised."""
    trained, held_out = normal(20, 0), normal(20, 1)
    near, control = trained[:16] + 0.1 * normal(16, 2), held_out[:16] + 0.1 * normal(16, 3)
    found = judge(near, trained, control, held_out)
    assert found is not None and not found.flag
    assert (found.closer, found.control) == (1.0, 1.0)


def test_of_one_picture_nothing_can_be_said():
    assert judge(normal(4, 0), normal(1, 1), None, None) is None


def test_latents_of_other_buckets_are_resized():
    assert of_one_size([normal(1, 0)[0], normal(1, 1, (4, 12, 3))[0]], (6, 6)).shape == (2, 4, 6, 6)


def test_the_frechet_distance_is_that_of_gaussians():
    """Of one-dimensional ones: (m1 - m2)^2 + (s1 - s2)^2; of the same pictures it is 0."""
    some = normal(40, 0, (1, 30, 30))
    assert style.frechet(2 * some + 3, some) == pytest.approx((3**2 + 1) ** 0.5, rel=0.02)
    pictures = normal(10, 1)
    assert style.frechet(pictures, pictures) == pytest.approx(0, abs=1e-4)
    moved = pictures + torch.tensor([3.0, 0, 0, 4.0]).view(4, 1, 1)
    assert style.frechet(moved, pictures) == pytest.approx(5)
    assert style.way(0.5, 2.0) == 0.75


def test_spread_is_within_the_seeds_of_a_prompt():
    latents = torch.tensor([0.0, 2.0, 100.0, 104.0]).view(4, 1, 1, 1)
    assert style.spread(latents, 2) == pytest.approx(3)


def test_agreement_counts_the_prompts_that_fit_best():
    errors = torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 5.0]])
    assert agreement(errors, [0, 1, 1]) == pytest.approx(2 / 3)


def contender(loss: float, order: float, *, drift: float = 1.0, flags=(), noise: float = 0.0):
    losses = loss + noise * torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])
    return Contender(1 - loss, losses, drift, order, list(flags))


def test_the_most_gain_wins():
    assert ranked([contender(0.5, 1), contender(0.2, 2), contender(0.3, 3)]) == [1, 2, 0]


def test_of_those_that_are_as_good_the_least_drift_wins():
    near = [contender(0.200, 300, drift=2.0), contender(0.203, 200, drift=1.0, noise=0.1)]
    assert ranked(near) == [1, 0]
    beyond_doubt = [near[0], contender(0.203, 200, drift=1.0)]
    assert ranked(beyond_doubt) == [0, 1]
    far = [near[0], contender(0.25, 200, drift=1.0, noise=0.5)]  # not within 1 % of the gain
    assert ranked(far) == [0, 1]


def test_what_diverged_comes_last_and_what_memorises_after_what_is_clean():
    nan = Contender(float("nan"), torch.full((5,), float("nan")), float("nan"), 4, [DIVERGED])
    all_of_them = [
        contender(0.1, 1, flags=[MEMORISING]),
        contender(0.05, 2, flags=[DIVERGED]),
        contender(0.6, 3),
        nan,
    ]
    assert ranked(all_of_them) == [2, 0, 1, 3]


def test_diverged_is_not_finite_or_worse_than_the_base_model():
    base = torch.ones(3, 4)
    assert ranking.is_diverged(base * 1.1, base)
    assert ranking.is_diverged(base * float("nan"), base)
    assert not ranking.is_diverged(base * 0.9, base)


def test_what_destroys_what_was_learnt_diverged():
    learnt = contender(0.3, 1)
    assert ranking.is_lost(contender(0.8, 2), learnt)
    assert not ranking.is_lost(contender(0.5, 2), learnt)  # more than half of it is there
    assert not ranking.is_lost(contender(0.8, 2, noise=0.6), learnt)  # who knows
    assert not ranking.is_lost(learnt, contender(0.8, 2))


def test_the_gap_of_gains_has_an_interval_around_it():
    mean, low = ranking.gap(torch.tensor([0.9, 0.8, 1.0]), torch.tensor([0.5, 0.6, 0.4]))
    assert mean == pytest.approx(0.4)
    assert low == pytest.approx(0.4 - 4.3027 * (2 * 0.01 / 3) ** 0.5, abs=1e-3)
