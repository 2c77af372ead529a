"""The noise that is added: white, or with more of the large than white noise has."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def sample_noise(
    shape: tuple[int, ...],
    generators: list[Generator],
    noise_offset: float = 0.0,
    multires_iterations: int = 0,
    multires_discount: float = 0.3,
) -> Tensor:
    """Gaussian noise (B, C, h, w), one generator for each sample.

    `noise_offset` adds a constant per sample and channel (https://www.crosslabs.org/blog/diffusion-with-offset-noise),
    so that very dark and very bright pictures can be learnt; 0.05 to 0.1 is usual.
    """
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    if noise_offset:
        offsets = [torch.randn((shape[0], 1, 1), generator=generator) for generator in generators]
        noise = noise + noise_offset * torch.stack(offsets)
    if multires_iterations:
        noise = torch.stack(
            [
                pyramid_noise(one, generator, multires_iterations, multires_discount)
                for one, generator in zip(noise, generators, strict=True)
            ]
        )
    return noise


def pyramid_noise(noise: Tensor, generator: Generator, iterations: int, discount: float) -> Tensor:
    """Noise (C, h, w) of several resolutions, of standard deviation 1.

    To `noise`, level i adds noise of 1/r^i of the size, r from 2 to 4, enlarged, times discount^i
    (J. Whitaker, "Multi-Resolution Noise for Diffusion Model Training", 2023). It ends before
    `iterations` where a side has shrunk to 1.
    """
    channels, height, width = noise.shape
    for level in range(iterations):
        shrinkage = (2 + 2 * float(torch.rand((), generator=generator))) ** level
        rows, columns = max(1, int(height / shrinkage)), max(1, int(width / shrinkage))
        coarse = torch.randn((1, channels, rows, columns), generator=generator)
        enlarged = F.interpolate(coarse, (height, width), mode="bilinear")
        noise = noise + enlarged[0] * discount**level
        if min(rows, columns) == 1:
            break
    return noise / noise.std()
