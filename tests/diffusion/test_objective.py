"""Noise, targets and weights against diffusers and against the papers' formulas."""

import pytest
import torch
from diffusers import DDIMScheduler

from hn.diffusion import objective

SCHEDULER = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ALPHAS = SCHEDULER.alphas_cumprod
TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def pair():
    draw = torch.Generator().manual_seed(1)
    return (torch.randn(len(TIMESTEPS), 4, 8, 8, generator=draw) for _ in range(2))


def test_noisy_latents_are_those_of_diffusers():
    latents, noise = pair()
    noisy = objective.add_noise(latents, noise, TIMESTEPS, ALPHAS)
    torch.testing.assert_close(noisy, SCHEDULER.add_noise(latents, noise, TIMESTEPS))


def test_the_velocity_is_that_of_diffusers():
    latents, noise = pair()
    velocity = objective.target(latents, noise, TIMESTEPS, ALPHAS, "v_prediction")
    torch.testing.assert_close(velocity, SCHEDULER.get_velocity(latents, noise, TIMESTEPS))


def test_the_target_of_epsilon_is_the_noise():
    latents, noise = pair()
    assert objective.target(latents, noise, TIMESTEPS, ALPHAS, "epsilon") is noise


def test_the_loss_of_a_sample_is_its_mean_squared_error_in_float32():
    prediction, target = pair()
    loss = objective.loss_per_sample(prediction.bfloat16(), target)
    assert loss.dtype == torch.float32
    expected = ((prediction.bfloat16().double() - target.double()) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def places(count):
    """Weights (B, 1, 8, 8): nothing, ones, and what an alpha channel gives."""
    weights = torch.ones(count, 1, 8, 8)
    weights[0] = 0
    weights[2:, :, :, :4] = 0
    weights[2:, :, :, 4:] = 2
    return weights


def test_each_place_counts_by_its_weight_in_all_channels():
    prediction, target = pair()
    weights = places(len(TIMESTEPS))
    found = objective.loss_per_sample(prediction, target, weights)
    plain = objective.loss_per_sample(prediction, target)
    seen = objective.loss_per_sample(prediction[..., 4:], target[..., 4:])
    assert found[0] == 0
    assert found[1] == plain[1]
    torch.testing.assert_close(found[2:], seen[2:])


def test_no_gradient_comes_from_where_the_weight_is_zero():
    prediction, target = pair()
    prediction.requires_grad_()
    weights = places(len(TIMESTEPS))
    objective.loss_per_sample(prediction, target, weights).sum().backward()
    hidden = (weights == 0).expand_as(prediction)
    assert prediction.grad[hidden].abs().max() == 0
    assert prediction.grad[~hidden].abs().min() > 0


def test_weights_of_one_are_no_weights_to_the_bit():
    prediction, target = pair()
    gradients = []
    for weights in (None, torch.ones(len(TIMESTEPS), 1, 8, 8)):
        leaf = prediction.clone().requires_grad_()
        loss = objective.loss_per_sample(leaf, target, weights)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        gradients.append((loss, gradient))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_follow_the_paper(prediction, gamma):
    weights = objective.min_snr_weights(TIMESTEPS, ALPHAS, prediction, gamma)
    share = ALPHAS.double()[TIMESTEPS]
    snr = share / (1 - share)
    least = torch.minimum(snr, torch.tensor(gamma))
    expected = least / snr if prediction == "epsilon" else least / (snr + 1)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_the_error_of_the_clean_latents(prediction):
    """Whatever is predicted, the weighted loss is min(SNR, gamma) times the error in latents."""
    gamma = 5.0
    alphas = ALPHAS.double()
    latents, noise = (x.double() for x in pair())
    noisy = objective.add_noise(latents, noise, TIMESTEPS, alphas)
    target = objective.target(latents, noise, TIMESTEPS, alphas, prediction)
    guess = target + 0.1 * torch.randn(target.shape, generator=generators(1)[0]).double()
    share = alphas[TIMESTEPS].view(-1, 1, 1, 1)
    signal, rest = share.sqrt(), (1 - share).sqrt()
    if prediction == "epsilon":
        clean = (noisy - rest * guess) / signal
    else:
        clean = signal * noisy - rest * guess
    error = ((clean - latents) ** 2).mean((1, 2, 3))
    snr = alphas[TIMESTEPS] / (1 - alphas[TIMESTEPS])
    weighted = objective.min_snr_weights(TIMESTEPS, ALPHAS, prediction, gamma) * (
        (guess - target) ** 2
    ).mean((1, 2, 3))
    torch.testing.assert_close(weighted, snr.clamp(max=gamma) * error, rtol=1e-4, atol=0)


def test_without_gamma_all_weights_are_one():
    assert torch.equal(
        objective.min_snr_weights(TIMESTEPS, ALPHAS, "epsilon", None), torch.ones(len(TIMESTEPS))
    )


def test_noise_is_standard_normal():
    noise = objective.sample_noise((4, 16, 16), generators(64))
    assert noise.shape == (64, 4, 16, 16)
    assert abs(noise.mean()) < 0.02  # 65,536 numbers: five standard errors
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_the_noise_offset_is_one_constant_per_sample_and_channel():
    plain = objective.sample_noise((4, 16, 16), generators(256))
    offset = objective.sample_noise((4, 16, 16), generators(256), 0.1) - plain
    per_channel = offset.mean((2, 3))
    assert offset.std((2, 3)).max() < 1e-6
    assert per_channel.std().item() == pytest.approx(0.1, rel=0.15)  # of 1,024 numbers
    assert abs(per_channel.mean()) < 0.02
    assert per_channel.std(1).min() > 0.001  # channels have their own


def test_timesteps_are_uniform_over_all():
    drawn = objective.sample_timesteps(10, generators(4000))
    counts = drawn.bincount(minlength=10)
    assert counts.shape == (10,)
    assert counts.min() > 300
    assert counts.max() < 500


def test_a_sample_does_not_depend_on_its_neighbours():
    latents = torch.randn(3, 4, 8, 8)
    together = objective.noised(latents, generators(3), ALPHAS, "epsilon", noise_offset=0.1)
    alone = objective.noised(
        latents[2:], generators(1, seed=2), ALPHAS, "epsilon", noise_offset=0.1
    )
    assert torch.equal(together.noisy[2:], alone.noisy)
    assert torch.equal(together.timesteps[2:], alone.timesteps)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_noised_problem_fits_together(prediction):
    latents = torch.randn(5, 4, 8, 8)
    problem = objective.noised(latents, generators(5), ALPHAS, prediction, snr_gamma=5.0)
    noise = objective.sample_noise((4, 8, 8), generators(5))
    t = problem.timesteps
    torch.testing.assert_close(problem.noisy, SCHEDULER.add_noise(latents, noise, t))
    expected = noise if prediction == "epsilon" else SCHEDULER.get_velocity(latents, noise, t)
    torch.testing.assert_close(problem.target, expected)
    weights = objective.min_snr_weights(t, ALPHAS, prediction, 5.0)
    assert torch.equal(problem.weights, weights)
    assert torch.equal(problem.to(torch.device("cpu")).noisy, problem.noisy)
