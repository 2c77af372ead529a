"""Noise and targets against diffusers, and the problems they make."""

import pytest
import torch
from diffusers import DDIMScheduler

from hn import rng
from hn.config import ObjectiveConfig
from hn.diffusion import objective
from hn.diffusion.objective import Objective, sample_noise, timestep_weights
from hn.errors import OptionError

SCHEDULER = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ALPHAS = SCHEDULER.alphas_cumprod
TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])
SCALES = objective.scales_at(TIMESTEPS, ALPHAS)


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def pair():
    draw = torch.Generator().manual_seed(1)
    return (torch.randn(len(TIMESTEPS), 4, 8, 8, generator=draw) for _ in range(2))


def test_noisy_latents_are_those_of_diffusers():
    latents, noise = pair()
    noisy = objective.add_noise(latents, noise, SCALES)
    torch.testing.assert_close(noisy, SCHEDULER.add_noise(latents, noise, TIMESTEPS))


def test_the_velocity_is_that_of_diffusers():
    latents, noise = pair()
    velocity = objective.target(latents, noise, SCALES, "v_prediction")
    torch.testing.assert_close(velocity, SCHEDULER.get_velocity(latents, noise, TIMESTEPS))


def test_the_target_of_epsilon_is_the_noise():
    latents, noise = pair()
    assert objective.target(latents, noise, SCALES, "epsilon") is noise


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


def make(prediction="epsilon", **settings):
    batch = settings.pop("global_batch", 1)
    return Objective(ObjectiveConfig(**settings), ALPHAS, prediction, seed=3, global_batch=batch)


EVERYTHING = {
    "noise_offset": 0.1,
    "input_perturbation": 0.1,
    "timestep_sampling": "logit_normal",
    "stratified_timesteps": True,
    "loss_type": "huber",
    "loss_weighting": "soft_min_snr",
}


@pytest.mark.parametrize(
    "settings", [{}, EVERYTHING, {"multires_noise_iterations": 4}], ids=["plain", "all", "multires"]
)
def test_a_sample_does_not_depend_on_its_neighbours(settings):
    """So two processes draw what one with twice the accumulation would."""
    latents = torch.randn(4, 4, 8, 8)
    objective = make(global_batch=4, **settings)
    together = objective.draw(latents, 7, [0, 1, 2, 3])
    alone = objective.draw(latents[2:], 7, [2, 3])
    assert torch.equal(together.noisy[2:], alone.noisy)
    assert torch.equal(together.target[2:], alone.target)
    assert torch.equal(together.timesteps[2:], alone.timesteps)
    assert torch.equal(together.weights[2:], alone.weights)
    assert not torch.equal(objective.draw(latents, 8, [0, 1, 2, 3]).noisy, together.noisy)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_noised_problem_fits_together(prediction):
    latents = torch.randn(5, 4, 8, 8)
    problem = make(prediction, snr_gamma=5.0).draw(latents, 2, [*range(5)])
    noise = sample_noise((4, 8, 8), [rng.generator(3, "noise", 2, slot) for slot in range(5)])
    t = problem.timesteps
    torch.testing.assert_close(problem.noisy, SCHEDULER.add_noise(latents, noise, t))
    expected = noise if prediction == "epsilon" else SCHEDULER.get_velocity(latents, noise, t)
    torch.testing.assert_close(problem.target, expected)
    weights = timestep_weights(ALPHAS, prediction, ObjectiveConfig(snr_gamma=5.0))
    assert torch.equal(problem.weights, weights[t])
    assert torch.equal(problem.to(torch.device("cpu")).noisy, problem.noisy)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perturbed_input_has_noise_on_the_noise_that_is_not_to_be_predicted(prediction):
    """2301.11706, algorithm 1: x_t of epsilon + gamma * xi, and epsilon is the target."""
    latents = torch.randn(64, 4, 8, 8)
    slots = [*range(64)]
    plain = make(prediction).draw(latents, 0, slots)
    perturbed = make(prediction, input_perturbation=0.1).draw(latents, 0, slots)
    assert torch.equal(plain.timesteps, perturbed.timesteps)
    assert torch.equal(plain.target, perturbed.target)
    rest = (1 - ALPHAS[plain.timesteps]).sqrt().view(-1, 1, 1, 1)
    off = (perturbed.noisy - plain.noisy) / rest / 0.1
    assert off.std().item() == pytest.approx(1, abs=0.02)  # of 16,384 numbers
    assert abs(off.mean()) < 0.04
    noise = make("epsilon").draw(latents, 0, slots).target
    correlation = torch.corrcoef(torch.stack([off.flatten(), noise.flatten()]))[0, 1]
    assert abs(correlation) < 0.04


def test_the_loss_is_the_mean_of_weighted_samples_and_the_penalty():
    problem = make(snr_gamma=5.0).draw(torch.randn(3, 4, 8, 8), 0, [0, 1, 2])
    guess = torch.randn_like(problem.target)
    losses = (guess.double() - problem.target.double()).square().mean((1, 2, 3))
    expected = (losses * problem.weights.double()).mean()
    found = make(snr_gamma=5.0).loss(guess, problem, torch.tensor(0.5))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    penalised = make(snr_gamma=5.0, residual_penalty=2.0).loss(guess, problem, torch.tensor(0.5))
    assert float(penalised) == pytest.approx(float(expected) + 1.0, rel=1e-6)


def test_timesteps_that_the_base_model_lacks_are_refused():
    make(timestep_range=(0, 1000))
    with pytest.raises(OptionError, match=r"timestep_range 0 1001 .* this base model has 0 to 999"):
        make(timestep_range=(0, 1001))
