"""How much each timestep counts, as a function of its signal-to-noise ratio (SNR)."""

from typing import Literal

import torch
from torch import Tensor

from hn.config import ObjectiveConfig

Prediction = Literal["epsilon", "v_prediction"]

USUAL_GAMMA = 5.0


def timestep_weights(
    alphas_cumprod: Tensor, prediction: Prediction, config: ObjectiveConfig
) -> Tensor:
    """The weight (T,) of the squared error at each timestep, in float32.

    Each kind is a weight of the error of the clean latents:
    min_snr        min(SNR, gamma)                  https://arxiv.org/abs/2303.09556
    soft_min_snr   SNR * gamma / (SNR + gamma)      https://arxiv.org/abs/2401.11605
    debiased       sqrt(SNR)                        https://arxiv.org/abs/2310.08442
    An error of epsilon is SNR times that one, an error of the velocity SNR + 1 times. So debiased
    is 1 / sqrt(SNR) for epsilon, as in the paper.
    """
    share = alphas_cumprod.double()
    snr = share / (1 - share)
    gamma = config.snr_gamma or USUAL_GAMMA
    match config.loss_weighting or ("none" if config.snr_gamma is None else "min_snr"):
        case "min_snr":
            of_clean = snr.clamp(max=gamma)
        case "soft_min_snr":
            of_clean = snr * gamma / (snr + gamma)
        case "debiased":
            of_clean = snr.sqrt()
        case _:
            return torch.ones_like(share, dtype=torch.float32)
    return (of_clean / (snr if prediction == "epsilon" else snr + 1)).float()
