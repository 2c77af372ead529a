"""What the script's own loop does beside the two passes: it waits for nothing on the way."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from hn.benchmark.loop import Loop
from hn.benchmark.ops import Ops
from hn.benchmark.scene import build_scene
from hn.config import ObjectiveConfig
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.objective import Objective
from tests import runs

# Read from files and drawn on the host, whatever the device is.
ON_THE_HOST = ("hn/data/", "hn/diffusion/objective/")
# Everything that could wait and does not: averages, bounds, weights of the loss, its penalty.
FEATURES = {
    "use_ema": True,
    "max_weight_norm": 5,
    "snr_gamma": 5,
    "residual_penalty": 0.1,
    "stratified_timesteps": True,
    "loss_type": "huber",
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "width_learning_rates": "16=0.5",
}


def _syncs(flags: list[str], device: str) -> Counter[str]:
    runs.forget_accelerate()
    with Ops(device) as ops:
        assert runs.train_here(flags) == 0
    return Counter(sync for sync in ops.syncs if not sync.split(" at ")[1].startswith(ON_THE_HOST))


def _more_syncs(model, pictures, folder, device: str) -> Counter[str]:
    """Of two more steps, neither of which reports."""
    found = [
        _syncs(
            runs.settings(
                model, pictures, folder / str(n), max_train_steps=n, logging_steps=9, **FEATURES
            ),
            device,
        )
        for n in (2, 4)
    ]
    return found[1] - found[0]


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_step_that_does_not_report_waits_for_nothing(model, pictures, tmp_path):
    """But on a CPU, where it costs nothing, the guard reads the norm before the step, not after."""
    more = _more_syncs(model, pictures, tmp_path, "cpu")
    places = {sync.rpartition(":")[0]: number for sync, number in more.items()}
    assert places == {"tolist at hn/training/watching/readings.py": 2}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.usefixtures("fresh_accelerate")
def test_nor_on_cuda(model, pictures, tmp_path):
    assert not _more_syncs(model, pictures, tmp_path, "cuda")


def test_what_is_copied_to_the_device_is_not_waited_for():
    """Meta tensors stand for the device."""
    sizes = {"resolution": 32, "batch": 1, "precision": "fp32", "widths": "all"}
    scene = replace(build_scene("tiny", **sizes, device="cpu"), device="meta")
    denoiser = Denoiser(scene.make_unet(), scene.make_network())
    objective = Objective(ObjectiveConfig(), torch.linspace(1, 0, 1000), "epsilon", device="meta")
    context = torch.randn(1, scene.shape.tokens, 96)
    with Ops("meta") as ops:
        problem = objective.draw(torch.randn(1, 4, 4, 4), 0, [0])
        prediction, residual = denoiser(
            problem.noisy, problem.timesteps, Condition(context=context)
        )
        objective.loss(prediction, problem, residual).backward()
    assert ops.count > 1000
    assert ops.syncs == []


def test_the_share_of_the_loop_is_what_is_neither_pass_nor_update():
    loop = Loop([1.0, 2.0, 4.0], [0.75, 1.5, 2.0], [0.125, 0.25, 1.0])
    assert (loop.share, loop.added) == (0.25, 0.125)
    assert replace(loop, passes=loop.steps).share == 0
