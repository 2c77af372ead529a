"""The web UI's samplers, as schedulers of diffusers with the base model's noise."""

from typing import Any

from hn.errors import OptionError

DEFAULT = "DDIM"  # that of the previews
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2M SDE Karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
"""The web UI's name, diffusers' class, and what it is told beyond the base model's settings."""


def make_scheduler(name: str, base: Any) -> Any:
    """The sampler of that name, with the noise and prediction of the base model's scheduler.

    Raises `OptionError` for one that cannot begin without signal, if the base model does.
    """
    import diffusers

    from hn.diffusion.loading.noising import has_zero_terminal_snr

    class_name, changes = SAMPLERS[name]
    made = getattr(diffusers, class_name).from_config(base.config, **changes)
    if has_zero_terminal_snr(base) and not has_zero_terminal_snr(made):
        raise OptionError(
            f"sampler {name} begins with a little of a picture, but this base model's denoising "
            "begins with none (zero terminal SNR): give DDIM, Euler, Euler a, UniPC or a DPM++"
        )
    return made
