"""Bases that were trained down to pure noise: tables, weights, previews, and whole runs."""

import json
import shutil
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import hn
from hn.config import ObjectiveConfig
from hn.diffusion import objective
from hn.diffusion.base_model import BaseModel
from hn.diffusion.generation.samplers import SAMPLERS, make_scheduler
from hn.diffusion.objective import Objective, huber_bounds, timestep_weights
from hn.diffusion.pipeline import Painter
from hn.errors import ModelError, OptionError
from tests import runs, tiny

WEIGHTINGS = ("none", "min_snr", "soft_min_snr", "debiased")
UNABLE = ("Heun", "DPM2", "DPM2 a", "PLMS")


@pytest.fixture(scope="module")
def velocity(tmp_path_factory):
    """A base model that says nothing of its end."""
    folder = tmp_path_factory.mktemp("velocity") / "base"
    return tiny.make_model(folder, prediction_type="v_prediction")


@pytest.fixture(scope="module")
def saying(velocity):
    """The same, whose scheduler says it."""
    folder = shutil.copytree(velocity, velocity.parent / "saying")
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_betas_zero_snr": True}))
    return folder


@pytest.fixture(scope="module")
def base(saying):
    return BaseModel.load(str(saying))


def alphas_in_float64():
    """Algorithm 1 of the paper, of Stable Diffusion's betas."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.double) ** 2
    signal = (1 - betas).cumprod(0).sqrt()
    first, last = float(signal[0]), float(signal[-1])
    return ((signal - last) * first / (first - last)) ** 2


def test_the_table_is_that_of_the_paper(velocity, base):
    expected, found = alphas_in_float64(), base.alphas_cumprod
    assert found.dtype == torch.float32
    assert found[-1] == expected[-1] == 0
    assert found[0] == expected[0].float() == BaseModel.load(str(velocity)).alphas_cumprod[0]
    torch.testing.assert_close(found.double(), expected, rtol=5e-5, atol=1e-12)
    forced = BaseModel.load(str(velocity), zero_terminal_snr=True)
    assert torch.equal(forced.alphas_cumprod, found)
    assert forced.scheduler.config["timestep_spacing"] == "trailing"
    assert not BaseModel.load(str(velocity)).zero_terminal_snr


def test_at_the_end_there_is_noise_alone_and_the_picture_is_its_target(base):
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scales = objective.scales_at(torch.tensor([999]), base.alphas_cumprod)
    assert torch.equal(objective.add_noise(latents, noise, scales), noise)
    velocity = objective.target(latents, noise, scales, "v_prediction")
    assert torch.equal(velocity, -latents)


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_weights_are_finite_where_there_is_no_signal(base, kind):
    weights = timestep_weights(
        base.alphas_cumprod, "v_prediction", ObjectiveConfig(loss_weighting=kind)
    )
    share = alphas_in_float64()
    snr = share / (1 - share)
    expected = {
        "none": torch.ones_like(snr),
        "min_snr": snr.clamp(max=5) / (snr + 1),
        "soft_min_snr": snr * 5 / (snr + 5) / (snr + 1),
        "debiased": snr.sqrt() / (snr + 1),
    }[kind]
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), expected, rtol=5e-5, atol=1e-12)


def test_robust_bounds_are_finite_too(base):
    bounds = huber_bounds(base.alphas_cumprod, 0.1, "snr")
    assert bounds.isfinite().all()
    assert bounds[-1] == torch.tensor(0.1)


def test_a_loss_at_the_end_is_finite(base):
    config = ObjectiveConfig(
        loss_weighting="debiased", loss_type="huber", timestep_range=(999, 1000)
    )
    problems = Objective(config, base.alphas_cumprod, "v_prediction")
    problem = problems.draw(torch.ones(2, 4, 8, 8), 0, [0, 1])
    assert problem.timesteps.tolist() == [999, 999]
    assert problems.loss(problem.noisy, problem, torch.zeros(())).isfinite()


def test_previews_are_those_of_diffusers_as_it_is_told_to_draw(saying, base):
    """From the last timestep on, with the guidance rescaled; latents as its own pipeline's."""
    prompt, negative = base.encode_prompts(["a star", ""])
    painter = Painter(base, prompt, negative, size=(16, 16), steps=3, guidance_scale=7.0, seed=4)
    pipe: Any = StableDiffusionPipeline.from_pretrained(saying)
    scheduler = pipe.scheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.register_modules(scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(
        prompt_embeds=prompt.context,
        negative_prompt_embeds=negative.context,
        generator=torch.Generator().manual_seed(4),
        output_type="latent",
        num_inference_steps=3,
        guidance_rescale=0.7,
        guidance_scale=7.0,
    ).images
    assert torch.equal(painter.latents(), drawn)
    assert scheduler.timesteps.tolist() == [999, 666, 332]
    assert drawn.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_begin_without_signal_or_are_refused(base, name):
    if name in UNABLE:
        with pytest.raises(OptionError, match=f"sampler {name} begins with a little"):
            make_scheduler(name, base.scheduler)
        return
    scheduler = make_scheduler(name, base.scheduler)
    prompt, negative = base.encode_prompts(["a star", ""])
    drawn = Painter(
        base, prompt, negative, size=(16, 16), steps=3, guidance_scale=3.0, seed=1,
        scheduler=scheduler,
    ).latents()  # fmt: skip
    assert scheduler.timesteps[0] == 999
    assert drawn.isfinite().all()


def test_what_predicts_noise_is_refused(model, saying, tmp_path):
    with pytest.raises(OptionError, match="zero_terminal_snr needs a base model that predicts the"):
        BaseModel.load(str(model), zero_terminal_snr=True)
    with pytest.raises(ModelError, match="the scheduler's rescale_betas_zero_snr needs a base"):
        BaseModel.load(str(saying), prediction="epsilon")


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_says_so_trains_and_resumes_to_the_bit(velocity, model, pictures, tmp_path, capsys):
    flags = runs.settings(
        velocity, pictures, tmp_path, max_train_steps=4, checkpointing_steps=2, snr_gamma=5,
        validation_prompt=["a star"], validation_inference_steps=2, validation_split=2,
        zero_terminal_snr=True,
    )  # fmt: skip
    refused = [*flags, "--pretrained_model_name_or_path", str(model), "--dry_run"]
    assert runs.train_here(refused) == 2
    assert "zero_terminal_snr needs a base model" in capsys.readouterr().err
    runs.forget_accelerate()
    assert runs.train_here(flags) == 0
    first = hn.load(tmp_path / "run/run.pt")
    assert "zero_terminal_snr" in str(first.provenance.optional_info)
    kept = tmp_path / "run/checkpoints"
    shutil.rmtree(kept / "step-00000004")
    runs.forget_accelerate()
    plain = [flag for flag in flags if flag != "--zero_terminal_snr"]
    assert runs.train_here([*plain, "--resume_from_checkpoint", "latest"]) == 2
    assert "zero_terminal_snr: True then, None now" in capsys.readouterr().err
    runs.forget_accelerate()
    assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 0
    again = hn.load(tmp_path / "run/run.pt").tensors()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.tensors().items())
