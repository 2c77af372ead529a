"""How a base model's pictures are noised: what its scheduler says, and what it is told beyond that.

With zero terminal SNR the last timestep is noise alone, so that denoising, which begins there,
decides how bright a picture is (https://arxiv.org/abs/2305.08891). Most bases leave a little of the
picture at the last timestep, and draw no very dark and no very bright ones.
"""

from typing import Any

from diffusers import DDIMScheduler

from hn.diffusion.objective import Prediction
from hn.errors import ModelError, OptionError

NO_SIGNAL = 1e-6  # some samplers of diffusers put 2^-24 where the paper has 0; usual is 5e-3
GUIDANCE_RESCALE = 0.7  # the paper's; without, guidance overexposes what such a base draws


def settle(
    scheduler: DDIMScheduler,
    prediction: Prediction | None = None,
    *,
    zero_terminal_snr: bool = False,
) -> DDIMScheduler:
    """The scheduler as it is told: what is predicted, and whether no signal is left at the end.

    Where none is, denoising begins at the last timestep ("trailing"), as the paper says; the others
    would leave it out. Raises `ModelError` for what cannot be predicted, `OptionError` if that is
    what was asked for.
    """
    if prediction is not None:
        scheduler.register_to_config(prediction_type=prediction)
    if not (zero_terminal_snr or has_zero_terminal_snr(scheduler)):
        return scheduler
    check_zero_terminal_snr(prediction_of(scheduler), asked=zero_terminal_snr)
    changes = {"rescale_betas_zero_snr": True} if zero_terminal_snr else {}
    settled: Any = DDIMScheduler.from_config(
        scheduler.config, timestep_spacing="trailing", **changes
    )
    return settled


def prediction_of(scheduler: Any) -> Prediction:
    """What the model predicts. Raises `ModelError` for what is not known here."""
    kind = scheduler.config["prediction_type"]
    if kind not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"the scheduler's prediction_type is '{kind}'; supported are epsilon and v_prediction"
        )
    if "sigma_data" in scheduler.config:  # of diffusers' EDM schedulers, which have no betas
        raise ModelError(
            "the scheduler is one of continuous noise (EDM, arXiv 2206.00364); supported are those "
            "of numbered timesteps, as Stable Diffusion's"
        )
    return kind


def has_zero_terminal_snr(scheduler: Any) -> bool:
    """Whether nothing of a picture is left at the last timestep, but for rounding."""
    return float(scheduler.alphas_cumprod[-1]) < NO_SIGNAL


def check_zero_terminal_snr(prediction: str, *, asked: bool) -> None:
    """Raises `OptionError` if it was asked for, or else `ModelError`, where it cannot be."""
    if prediction == "v_prediction":
        return
    source = "zero_terminal_snr" if asked else "the scheduler's rescale_betas_zero_snr"
    raise (OptionError if asked else ModelError)(
        f"{source} needs a base model that predicts the velocity; this one predicts {prediction}. "
        "At the last timestep what is noisy is the noise itself, so there is nothing to learn, and "
        "no picture follows from the answer. If the model does predict the velocity, give "
        "prediction_type v_prediction"
    )
