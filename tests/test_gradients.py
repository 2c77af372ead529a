"""What learns and what must not."""

import copy

import pytest
import torch

from hn.config import DataConfig, ObjectiveConfig
from hn.data.batches import Batches, Layout
from hn.data.cache.contexts import Contexts
from hn.data.pictures.images import load_examples
from hn.data.words.prompts import Prompts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.objective import Objective
from hn.network.module import Hypernetwork
from tests import caches


def _state(base: BaseModel) -> dict[str, torch.Tensor]:
    parts = {"unet": base.unet, "vae": base.vae, "text_encoder": base.text_encoder.model}
    return {f"{n}.{k}": t for n, part in parts.items() for k, t in part.state_dict().items()}


def _two_steps(base, batches, denoiser):
    """Two AdamW steps; the gradients of the second."""
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    objective = Objective(ObjectiveConfig(), base.alphas_cumprod, base.prediction)
    for step in range(2):
        optimizer.zero_grad()
        (batch,) = batches.at(step)
        problem = objective.draw(batch.latents, step, batch.slots)
        prediction, residual = denoiser(problem.noisy, problem.timesteps, batch.condition)
        objective.loss(prediction, problem, residual).backward()
        optimizer.step()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("activation", ["linear", "relu", "swish"])
def test_every_module_learns_by_step_2_and_nothing_else_does(
    model, pictures, tmp_path, activation, checkpointing
):
    base = BaseModel.load(str(model))
    data = DataConfig(train_data_dir=str(pictures), resolution=(16,))
    dataset = load_examples(data)
    net = Hypernetwork.create(base.dims, activation_func=activation, seed=0)
    prompts = Prompts.of(dataset, ["[filewords]"], "x", data, 0)
    latents = caches.encode(tmp_path, dataset, base, data)
    layout = Layout(batch_size=2, accumulation=1)
    batches = Batches(latents, prompts, Contexts(base), layout, 0)
    before = copy.deepcopy(_state(base))
    denoiser = Denoiser(base.unet, net, gradient_checkpointing=checkpointing)
    _two_steps(base, batches, denoiser)

    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
    for dim in net.dims:
        for kind in "kv":
            module = net.pairs[str(dim)][kind]
            size = sum(float(p.grad.abs().sum()) for p in module.parameters() if p.dim() == 2)
            assert size > 0, f"{dim} {kind}"
    for part in (base.unet, base.vae, base.text_encoder.model):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    for key, tensor in _state(base).items():
        assert torch.equal(tensor, before[key]), key


def test_only_the_hypernetwork_is_registered(model):
    base = BaseModel.load(str(model))
    net = Hypernetwork.create(base.dims, seed=0)
    denoiser = Denoiser(base.unet, net)
    assert {key.split(".")[0] for key in denoiser.state_dict()} == {"hypernetwork"}
    assert sum(p.numel() for p in denoiser.parameters()) == sum(p.numel() for p in net.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_trains_on_cuda(model, pictures, tmp_path, precision):
    from tests import runs

    flags = runs.settings(model, pictures, tmp_path, mixed_precision=precision, max_train_steps=20)
    assert runs.train_here([*flags, "--validation_prompt", "a red star"]) == 0
    losses = runs.losses(tmp_path / "run")
    assert all(0 < loss < 10 for loss in losses)
