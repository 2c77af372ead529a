"""The training objective: noise, timesteps, target, weights, loss. Functions of tensors, and
`Objective`, which puts together those that the settings name.
"""

from hn.diffusion.objective.losses import huber_bounds, loss_per_sample
from hn.diffusion.objective.noise import pyramid_noise, sample_noise
from hn.diffusion.objective.problem import (
    Noised,
    Objective,
    Prediction,
    add_noise,
    scales_at,
    target,
)
from hn.diffusion.objective.timesteps import sample_timesteps
from hn.diffusion.objective.weights import timestep_weights

__all__ = [
    "Noised",
    "Objective",
    "Prediction",
    "add_noise",
    "huber_bounds",
    "loss_per_sample",
    "pyramid_noise",
    "sample_noise",
    "sample_timesteps",
    "scales_at",
    "target",
    "timestep_weights",
]
