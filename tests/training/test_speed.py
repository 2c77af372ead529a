"""The switches of speed change rounding only, and a run with them resumes to the bit."""

import pytest
import torch

from hn.config import OptimizerConfig
from hn.network.module import Hypernetwork
from hn.training.optimizers import build_optimizer
from tests import runs

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
OFF = {"optimizer_args": ["fused=False"], "channels_last": "off"}
ON = {"stack_projections": True, "optimizer_args": ["fused=True"], "channels_last": "on"}
STEPS = {"max_train_steps": 6, "learning_rate": "1e-3", "allow_tf32": "off"}


@pytest.fixture(autouse=True)
def tf32_as_it_was():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-5), ("bf16", 2e-2)])
def test_a_run_learns_the_same_with_all_of_them(model, pictures, tmp_path, precision, tolerance):
    found = {}
    for name, switches in (("off", OFF), ("on", ON)):
        changes = {**STEPS, **switches, "mixed_precision": precision}
        assert runs.train_here(runs.settings(model, pictures, tmp_path / name, **changes)) == 0
        found[name] = runs.losses(tmp_path / name / "run")
    assert found["on"] == pytest.approx(found["off"], rel=tolerance)
    assert not runs.same_tensors(tmp_path / "on/run/run.pt", tmp_path / "off/run/run.pt")


def test_a_run_with_all_of_them_resumes_to_the_bit(model, pictures, tmp_path):
    changes = {**STEPS, **ON, "checkpointing_steps": 3}
    whole, half = (
        runs.settings(model, pictures, tmp_path / name, **changes | steps)
        for name, steps in (("whole", {}), ("half", {"max_train_steps": 3}))
    )
    assert runs.train_here(whole) == runs.train_here(half) == 0
    rest = runs.settings(model, pictures, tmp_path / "half", **changes)
    assert runs.train_here([*rest, "--resume_from_checkpoint", "latest"]) == 0
    assert runs.same_tensors(tmp_path / "whole/run/run.pt", tmp_path / "half/run/run.pt")


@pytest.mark.parametrize(
    ("settings", "scaled", "fused"),
    [
        ({}, False, True),
        ({}, True, None),  # the scaler would not learn that a step was skipped
        ({"optimizer": "SGD"}, False, True),
        ({"optimizer_args": ("foreach=True",)}, False, None),
        ({"optimizer_args": ("fused=False",)}, False, False),
        ({"optimizer": "Adagrad"}, False, None),
    ],
)
def test_the_fused_kernel_is_taken_where_it_can_be(settings, scaled, fused):
    net = Hypernetwork.create((16,), seed=0)
    optimizer = build_optimizer(net, OptimizerConfig(**settings), 1e-3, scaled=scaled)
    assert optimizer.param_groups[0].get("fused") is fused


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_all_of_them_on_cuda(model, pictures, tmp_path, precision):
    """Needs CUDA: norms without autocast, channels last, pinned copies, compiled blocks."""
    found = {}
    for name, switches in (("off", OFF), ("on", ON | {"torch_compile": True})):
        changes = {**STEPS, **switches, "mixed_precision": precision}
        if precision == "fp16":
            del changes["optimizer_args"]
        assert runs.train_here(runs.settings(model, pictures, tmp_path / name, **changes)) == 0
        found[name] = runs.losses(tmp_path / name / "run")
    assert found["on"] == pytest.approx(found["off"], rel=1e-3 if precision == "no" else 3e-2)
