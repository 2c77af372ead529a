"""The residual ratio is that of the contexts that the attention reads."""

import pytest
import torch

from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import Denoiser
from hn.network.module import Hypernetwork
from tests import tiny

TIMESTEPS = torch.tensor([3, 500])


def make(**settings):
    torch.manual_seed(0)
    unet = tiny.make_unet()
    net = Hypernetwork.create(
        tiny.DIMS, activation_func="mish", weight_initialization="XavierNormal", seed=0
    ).train()
    draw = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=draw)
    condition = Condition(context=torch.randn(2, 7, tiny.CONTEXT_DIM, generator=draw))
    return Denoiser(unet, net, note_residuals=True, **settings), net, noisy, condition


def read_contexts(denoiser):
    """What goes into each module, by hooks of our own."""
    found = {}
    for dim in denoiser.hypernetwork.dims:
        for side in "kv":
            module = denoiser.hypernetwork.module(dim, side)
            calls = found.setdefault(module, [])
            module.register_forward_hook(lambda m, args, out, calls=calls: calls.append(args[0]))
    return found


def test_it_is_the_mean_over_modules_of_the_mean_over_calls_and_samples():
    denoiser, _, noisy, condition = make()
    contexts = read_contexts(denoiser)
    _, residual = denoiser(noisy, TIMESTEPS, condition)
    means = []
    for module, calls in contexts.items():
        changes = [module.linear(x).double() for x in calls]
        ratios = [
            change.square().sum((1, 2)) / x.double().square().sum((1, 2))
            for change, x in zip(changes, calls, strict=True)
        ]
        means.append(torch.stack(ratios).mean())
    assert len(means) == 6
    expected = torch.stack(means).mean().item()
    assert residual.item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


def gradients(**settings):
    denoiser, net, noisy, condition = make(**settings)
    prediction, residual = denoiser(noisy, TIMESTEPS, condition)
    (prediction.square().mean() + residual).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"transform_once": False}])
def test_its_gradient_is_the_same_where_modules_are_called_again(settings):
    torch.testing.assert_close(gradients(**settings), gradients(), rtol=1e-4, atol=1e-6)


def test_its_gradient_is_the_slope():
    """Along the gradient in float64, by central differences."""
    denoiser, net, noisy, condition = make()
    denoiser.unet.double()
    net.double()
    weights = [*net.parameters()]
    _, residual = denoiser(noisy, TIMESTEPS, condition)
    found = torch.autograd.grad(residual, weights, allow_unused=True)
    direction = [torch.randn_like(weight) for weight in weights]
    slope = sum(
        float((g * d).sum()) for g, d in zip(found, direction, strict=True) if g is not None
    )
    ends = []
    with torch.no_grad():
        for step in (1e-3, -2e-3):
            for weight, d in zip(weights, direction, strict=True):
                weight.add_(step * d)
            ends.append(float(denoiser(noisy, TIMESTEPS, condition)[1]))
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


def test_a_new_hypernetwork_has_none_and_learns_all_the_same():
    denoiser, net, noisy, condition = make()
    net.load_state_dict(Hypernetwork.create(tiny.DIMS, activation_func="mish", seed=0).state_dict())
    prediction, residual = denoiser(noisy, TIMESTEPS, condition)
    (prediction.square().mean() + residual).backward()
    assert residual.item() == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_nothing_is_noted_where_it_is_not_asked_for_or_not_trained():
    denoiser, net, noisy, condition = make()
    net.eval()
    assert float(denoiser(noisy, TIMESTEPS, condition)[1]) == 0
    plain = Denoiser(tiny.make_unet(), Hypernetwork.create(tiny.DIMS, seed=0).train())
    assert float(plain(noisy, TIMESTEPS, condition)[1]) == 0
