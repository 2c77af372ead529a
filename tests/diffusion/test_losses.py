"""Robust losses, weights, timesteps and coarse noise, against their papers' formulas in float64."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from hn.config import ObjectiveConfig
from hn.diffusion import objective
from hn.diffusion.objective.timesteps import strata

SCHEDULER = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ALPHAS = SCHEDULER.alphas_cumprod
SHARE = ALPHAS.double()
SNR = SHARE / (1 - SHARE)
PREDICTIONS = ["epsilon", "v_prediction"]


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def pair(count=6):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(count, 4, 8, 8, generator=draw) for _ in range(2)]


# distances


def expected_distance(error, kind, c):
    root = (error.square() + c**2).sqrt() - c
    return {
        "l2": error.square(),
        "l1": error.abs(),
        "huber": 2 * c * root,
        "smooth_l1": 2 * root,
    }[kind]


@pytest.mark.parametrize("kind", ["l2", "l1", "huber", "smooth_l1"])
def test_a_distance_and_its_slope_follow_the_formula(kind):
    prediction, target = pair()
    prediction[0] = target[0]  # nothing is wrong: the slope is zero, and a number
    bounds = torch.tensor([0.001, 0.01, 0.1, 0.5, 1.0, 1.0])
    leaf = prediction.clone().requires_grad_()
    found = objective.loss_per_sample(leaf, target, loss_type=kind, bounds=bounds)
    (slope,) = torch.autograd.grad(found.sum(), leaf)
    exact = prediction.double().requires_grad_()
    c = bounds.double().view(-1, 1, 1, 1)
    expected = expected_distance(exact - target.double(), kind, c).mean((1, 2, 3))
    (exact_slope,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=1e-4, atol=1e-9)
    assert (slope[0] == 0).all()


def test_huber_is_l2_near_the_target_and_smooth_l1_is_twice_l1_far_off():
    target, near, far = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 1e-3), torch.tensor(1e4)
    one = {"bounds": torch.ones(1)}
    huber = objective.loss_per_sample(near, target, loss_type="huber", **one)
    assert float(huber) == pytest.approx(1e-6, rel=1e-5)
    linear = objective.loss_per_sample(far.view(1, 1, 1, 1), target, loss_type="smooth_l1", **one)
    assert float(linear) == pytest.approx(2e4, rel=1e-3)


@pytest.mark.parametrize("c", [0.01, 0.1, 1.0])
def test_the_bounds_follow_their_schedules(c):
    """2403.16728: exp(-alpha t) with alpha = -log(c) / T; (1 - c) / (1 + sigma)^2 + c."""
    alpha = -math.log(c) / 1000
    exponential = objective.huber_bounds(ALPHAS, c, "exponential").double()
    expected = torch.exp(-alpha * torch.arange(1000).double())
    torch.testing.assert_close(exponential, expected, rtol=1e-6, atol=0)
    sigma = ((1 - SHARE) / SHARE).sqrt()
    snr = objective.huber_bounds(ALPHAS, c, "snr").double()
    torch.testing.assert_close(snr, (1 - c) / (1 + sigma) ** 2 + c, rtol=1e-6, atol=0)
    assert objective.huber_bounds(ALPHAS, c, "constant").tolist() == [pytest.approx(c)] * 1000


# weights

OF_CLEAN = {
    "min_snr": lambda gamma: SNR.clamp(max=gamma),
    "soft_min_snr": lambda gamma: 1 / (1 / SNR + 1 / gamma),
    "debiased": lambda gamma: SNR.sqrt(),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", OF_CLEAN)
@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_a_weight_is_one_of_the_error_of_the_clean_latents(kind, prediction, gamma):
    """Whatever is predicted, the weighted loss is the paper's weight times the error in latents."""
    if kind == "debiased":
        config = ObjectiveConfig(loss_weighting=kind)
    else:
        config = ObjectiveConfig(loss_weighting=kind, snr_gamma=gamma)
    t = torch.tensor([0, 1, 250, 500, 998, 999])
    latents, noise = (x.double() for x in pair())
    noisy = objective.add_noise(latents, noise, objective.scales_at(t, SHARE))
    target = objective.target(latents, noise, objective.scales_at(t, SHARE), prediction)
    guess = target + 0.1 * torch.randn(target.shape, generator=generators(1)[0]).double()
    signal, rest = (x[t].view(-1, 1, 1, 1) for x in (SHARE.sqrt(), (1 - SHARE).sqrt()))
    clean = (
        (noisy - rest * guess) / signal
        if prediction == "epsilon"
        else signal * noisy - rest * guess
    )
    error = (clean - latents).square().mean((1, 2, 3))
    weights = objective.timestep_weights(ALPHAS, prediction, config)[t]
    weighted = weights * (guess - target).square().mean((1, 2, 3))
    torch.testing.assert_close(weighted, OF_CLEAN[kind](gamma)[t] * error, rtol=1e-4, atol=0)


def weights_of(prediction="epsilon", **settings):
    found = objective.timestep_weights(ALPHAS, prediction, ObjectiveConfig(**settings))
    assert found.dtype == torch.float32
    return found.double()


def test_weights_of_epsilon_are_those_of_the_papers():
    close = {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(weights_of(loss_weighting="debiased"), 1 / SNR.sqrt(), **close)
    expected = SNR.clamp(max=5) / SNR
    torch.testing.assert_close(weights_of(snr_gamma=5.0), expected, **close)  # as diffusers has it
    assert torch.equal(weights_of(loss_weighting="min_snr"), weights_of(snr_gamma=5.0))


def test_a_soft_minimum_is_below_the_hard_one_and_at_most_half_of_it():
    hard, soft = (weights_of(loss_weighting=kind) for kind in ("min_snr", "soft_min_snr"))
    assert (soft < hard).all()
    assert (soft >= hard / 2 - 1e-6).all()


@pytest.mark.parametrize("settings", [{}, {"loss_weighting": "none"}])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_without_a_kind_all_weights_are_one(settings, prediction):
    assert (weights_of(prediction, **settings) == 1).all()


# timesteps


def drawn(count, **settings):
    return objective.sample_timesteps(1000, generators(count), ObjectiveConfig(**settings))


def test_timesteps_are_uniform_over_all():
    counts = objective.sample_timesteps(10, generators(4000)).bincount(minlength=10)
    assert counts.shape == (10,)
    assert counts.min() > 300
    assert counts.max() < 500


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_timesteps_stay_in_their_range_and_reach_its_ends(sampling):
    wide = {"logit_std": 4.0} if sampling == "logit_normal" else {}
    found = drawn(2000, timestep_range=(400, 420), timestep_sampling=sampling, **wide)
    assert (found.min(), found.max()) == (400, 419)
    certain = torch.tensor([0.0, 1 - 2**-53])
    config = ObjectiveConfig(timestep_range=(400, 420), timestep_sampling=sampling, **wide)
    ends = objective.sample_timesteps(1000, [], config, certain.double())
    assert ends.tolist() == [400, 419]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.8), (1.0, 1.5)])
def test_logit_normal_timesteps_have_its_distribution(mean, std):
    """The largest distance from the distribution function, as of Kolmogorov and Smirnov."""
    count = 4000
    settings = {"timestep_sampling": "logit_normal", "logit_mean": mean, "logit_std": std}
    places = (drawn(count, **settings).double().sort().values + 0.5) / 1000
    expected = torch.special.ndtr((torch.logit(places) - mean) / std)
    found = (torch.arange(count).double() + 0.5) / count
    assert (found - expected).abs().max() < 1.63 / count**0.5  # 1 % of all draws exceed it


def test_strata_spread_a_global_batch_evenly_however_it_is_dealt_out():
    offset = 0.73
    whole = strata(offset, [*range(8)], 8)
    dealt = torch.cat([strata(offset, slots, 8) for slots in ([0, 1], [2, 3], [4, 5], [6, 7])])
    assert torch.equal(whole, dealt)
    gaps = whole.sort().values.diff()
    assert gaps.tolist() == [pytest.approx(1 / 8)] * 7
    assert (whole.min() >= 0, whole.max() < 1) == (True, True)


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_stratified_timesteps_have_the_same_distribution_with_less_chance(sampling):
    """Each eighth of the distribution gets one of eight, and over steps each slot gets all."""
    config = ObjectiveConfig(stratified_timesteps=True, timestep_sampling=sampling)
    problems = objective.Objective(config, ALPHAS, "epsilon", seed=5, global_batch=8)
    latents = torch.zeros(8, 1, 2, 2)
    steps = torch.stack(
        [problems.draw(latents, step, [*range(8)]).timesteps for step in range(400)]
    )
    places = (steps.double() + 0.5) / 1000
    if sampling == "logit_normal":
        places = torch.special.ndtr(torch.logit(places))
    ranks = places.sort(1).values * 8
    assert (ranks.diff(dim=1) - 1).abs().max() < 0.1  # timesteps are whole numbers
    for slot in range(8):
        counts = (places[:, slot] * 8).long().bincount(minlength=8)
        assert counts.min() > 25  # of 50
        assert counts.max() < 80


# coarse noise


def test_pyramid_noise_follows_its_formula():
    """Each level drawn and enlarged again, with the ratio found in the same place."""
    noise = torch.randn(2, 16, 24, generator=generators(1)[0])
    found = objective.pyramid_noise(noise, generators(1, 5)[0], 3, 0.4)
    draw, total = generators(1, 5)[0], noise.clone()
    for level in range(3):
        ratio = float(torch.rand((), generator=draw)) * 2 + 2
        height, width = max(1, int(16 / ratio**level)), max(1, int(24 / ratio**level))
        coarse = torch.randn(1, 2, height, width, generator=draw)
        enlarge = torch.nn.Upsample(size=(16, 24), mode="bilinear")
        total += enlarge(coarse)[0] * 0.4**level
    torch.testing.assert_close(found, total / total.std())


def test_pyramid_noise_has_more_of_the_large_and_stays_as_strong():
    plain = objective.sample_noise((4, 16, 16), generators(64))
    coarse = objective.sample_noise((4, 16, 16), generators(64), 0.0, 8, 0.6)
    stds = coarse.flatten(1).std(1)
    torch.testing.assert_close(stds, torch.ones(64))
    assert coarse.mean((2, 3)).std() > 2 * plain.mean((2, 3)).std()
    rough = (coarse - coarse.roll(1, -1)).std() / (plain - plain.roll(1, -1)).std()
    assert rough < 0.95
