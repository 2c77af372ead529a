"""What the base model in a single file predicts, where the file says it: by an empty tensor, as
trainers of velocity mark Stable Diffusion XL, or in the header (Stability AI's ModelSpec).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from hn.diffusion.objective import Prediction
from hn.diffusion.single_file.families import Family
from hn.diffusion.single_file.source import Source
from hn.diffusion.surgery.tensor_files import Entry
from hn.errors import ModelError, shown

VELOCITY, ZERO_SNR = "v_pred", "ztsnr"
_CONTINUOUS = ("edm_mean", "edm_vpred.sigma_max")  # of Playground 2.5, of CosXL
_HEADER = ("modelspec.prediction_type", "modelspec.predict_key")
_WORDS: dict[str, Prediction] = {
    "v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon",
}  # fmt: skip
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def prediction_of(source: Source, family: Family, given: Prediction | None) -> Prediction:
    """What is `given`, or what the file says, or else noise.

    Raises `ModelError` for a Stable Diffusion 2 that says nothing, and for what has no timesteps.
    """
    found = [name for name in _CONTINUOUS if name in source.shapes]
    if found:
        raise ModelError(
            f"{source.path} denoises by continuous noise levels (EDM; it holds {found[0]}), not by "
            "timesteps as Stable Diffusion does: take another base model"
        )
    if given is not None:
        return given
    if VELOCITY in source.shapes:
        return "v_prediction"
    said = next((source.metadata[key] for key in _HEADER if key in source.metadata), None)
    if said is not None:
        return _understood(said, source)
    if family.is_second:
        raise ModelError(
            f"{source.path} is a {family.name}, and does not say what it predicts: give "
            "prediction_type, v_prediction for those of 768 pixels, epsilon for 512"
        )
    return "epsilon"


def _understood(said: str, source: Source) -> Prediction:
    if said not in _WORDS:
        raise ModelError(
            f"{source.path} says that it predicts {shown(said)}; known are {', '.join(_WORDS)}: "
            "give prediction_type if you know better"
        )
    return _WORDS[said]


def scheduler_config(source: Source, prediction: Prediction) -> dict[str, Any]:
    """How all of them add noise; to the last bit of signal where the file is marked so."""
    config = {**_NOISE, **_DDIM, "prediction_type": prediction}
    if ZERO_SNR in source.shapes and prediction == "v_prediction":
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def marks_of(scheduler: Mapping[str, Any]) -> Iterator[Entry]:
    """The marks for the scheduler of a folder."""
    if scheduler.get("prediction_type") == "v_prediction":
        yield Entry(VELOCITY, "F32", (0,), lambda: torch.empty(0))
        if scheduler.get("rescale_betas_zero_snr"):
            yield Entry(ZERO_SNR, "F32", (0,), lambda: torch.empty(0))
