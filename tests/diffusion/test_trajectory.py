"""The web UI's training runs, replayed with our parts: the same losses, the same weights."""

from dataclasses import dataclass

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import hn
from hn.diffusion import objective
from hn.diffusion.denoiser import Condition, Denoiser
from tests import golden

ALPHAS = golden.read_tensors("trajectory/common.safetensors")
SCALE = 65536  # the web UI clips gradients that are still scaled
# golden/README.md's figures: losses, and final weights but for the biases it tells apart. They hold
# for attention that sums as the web UI's does, which is torch's plain kernel.
LOSS_TOLERANCE = 5e-7
WEIGHTED_LOSS_TOLERANCE = 2e-6  # its weights are large
TOLERANCES = {  # of the weights, and of k's first bias, of which some gradients are rounding noise
    "sgd": (1e-7, 1e-7),
    "clip-norm-1-scaler": (1e-6, 1e-6),
    "plain": (6e-5, 2e-4),
    "accum2": (6e-5, 2e-4),
    "clip-value": (6e-5, 2e-4),
}
# The kernel that a run takes sums in another order; AdamW amplifies that.
FAST_KERNEL = 4


@dataclass(frozen=True)
class Run:
    """What the web UI recorded, as far as a replay needs it."""

    settings: dict
    inputs: dict[str, Tensor]
    initial: hn.Hypernetwork


def read_run(name: str) -> Run:
    settings = golden.read_json(f"trajectory/{name}/run.json")
    return Run(
        settings,
        golden.read_tensors(f"trajectory/{settings['inputs_file']}"),
        hn.load(golden.FOLDER / "trajectory" / settings["initial_file"]),
    )


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    config = golden.read_json("trajectory/unet/config.json")
    unet = UNet2DConditionModel.from_config(config)
    weights = golden.read_tensors("trajectory/unet/weights_fp16_exact.safetensors")
    unet.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    return unet.eval().requires_grad_(False)


def micro_loss(denoiser: Denoiser, inputs: dict[str, Tensor], number: int) -> Tensor:
    latents, noise, timesteps, context = (
        inputs[f"{number:03}/{key}"] for key in ("latents", "noise", "t", "context")
    )
    alphas = ALPHAS["alphas_cumprod"]
    noisy = objective.add_noise(latents, noise, timesteps, alphas)
    prediction = denoiser(noisy, timesteps, Condition(context))
    target = objective.target(latents, noise, timesteps, alphas, "epsilon")
    weights = inputs.get(f"{number:03}/loss_weight")
    return objective.loss_per_sample(prediction, target, weights).mean()


def clip(run: Run, net: hn.Hypernetwork) -> None:
    bound = float(run.settings["clip_grad_value"])
    if run.settings["clip_grad_mode"] == "norm":
        torch.nn.utils.clip_grad_norm_(net.parameters(), bound)
    elif run.settings["clip_grad_mode"] == "value":
        torch.nn.utils.clip_grad_value_(net.parameters(), bound)


def unscale(net: hn.Hypernetwork, scale: int) -> None:
    for parameter in net.parameters():
        parameter.grad /= scale


def replay(run: Run, unet: UNet2DConditionModel) -> tuple[list[float], hn.Hypernetwork]:
    """Losses of all micro-batches and the trained hypernetwork."""
    settings, net, losses = run.settings, run.initial.train(), []
    optimizer = getattr(torch.optim, settings["optimizer"])(net.parameters(), lr=0.0)
    accumulation = settings["gradient_accumulation"]
    scale = SCALE if settings["grad_scaler_active"] else 1
    denoiser = Denoiser(unet, net)
    with denoiser.attachment:
        for step in settings["steps"]:
            optimizer.param_groups[0]["lr"] = step["lr_used"]
            for _ in range(accumulation):
                loss = micro_loss(denoiser, run.inputs, len(losses))
                (loss / accumulation * scale).backward()
                losses.append(loss.item())
            clip(run, net)
            unscale(net, scale)
            optimizer.step()
            optimizer.zero_grad()
    return losses, net


def last_k_bias(net: hn.Hypernetwork) -> list[str]:
    """Their gradients are mathematically zero: a constant on all keys cancels in the softmax."""
    keys = [k for k in net.tensors() if ".k." in k and k.endswith("bias")]
    return [[k for k in keys if k.startswith(f"{dim}.")][-1] for dim in net.dims]


def test_the_unet_is_the_one_of_the_runs(unet):
    x, timesteps, context = (ALPHAS[f"unet_check/{key}"] for key in ("x", "t", "context"))
    with torch.no_grad():
        out = unet(x, timesteps, context, return_dict=False)[0]
    expected = ALPHAS["unet_check/out_without_hypernetwork"]
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)


def first_k_bias(net: hn.Hypernetwork) -> list[str]:
    """Their biases come before the activation, those of `last_k_bias` after it."""
    return [key for key in net.tensors() if key.endswith(".k.linear.0.bias")]


def far_off(name: str, net: hn.Hypernetwork, slack: float) -> dict[str, float]:
    """The tensors that are further from the web UI's final weights than tolerated, and how far."""
    expected = hn.load(golden.FOLDER / "trajectory" / name / "final.pt").tensors()
    left_out, first = last_k_bias(net), first_k_bias(net)
    distances = {
        key: (tensor - expected[key]).abs().max().item()
        for key, tensor in net.tensors().items()
        if key not in left_out
    }
    rest, first_bias = TOLERANCES[name]
    return {
        key: distance
        for key, distance in distances.items()
        if distance > slack * (first_bias if key in first else rest)
    }


@pytest.mark.parametrize("name", TOLERANCES)
def test_a_run_has_the_web_uis_losses_and_ends_with_its_weights(name, unet):
    run = read_run(name)
    with sdpa_kernel(SDPBackend.MATH):
        losses, net = replay(run, unet)
    assert losses == pytest.approx(run.settings["micro_losses"], abs=LOSS_TOLERANCE)
    assert far_off(name, net, slack=1) == {}


@pytest.mark.parametrize("name", TOLERANCES)
def test_the_fast_kernel_changes_rounding_only(name, unet):
    run = read_run(name)
    losses, net = replay(run, unet)
    tolerance = FAST_KERNEL * LOSS_TOLERANCE
    assert losses == pytest.approx(run.settings["micro_losses"], abs=tolerance)
    assert far_off(name, net, slack=FAST_KERNEL) == {}


def test_a_run_weighted_by_alpha_has_the_web_uis_losses(unet):
    """Ten steps: each loss follows from the weighted gradients of those before it."""
    run = read_run("weighted")
    with sdpa_kernel(SDPBackend.MATH):
        losses, _ = replay(run, unet)
    assert losses == pytest.approx(run.settings["micro_losses"], abs=WEIGHTED_LOSS_TOLERANCE)
    even = {key: tensor for key, tensor in run.inputs.items() if "loss_weight" not in key}
    unweighted, _ = replay(Run(run.settings, even, read_run("weighted").initial), unet)
    assert (
        min(abs(a - b) for a, b in zip(losses, unweighted, strict=True))
        > 100 * WEIGHTED_LOSS_TOLERANCE
    )


def test_the_last_bias_of_k_has_no_gradient_in_double_precision(unet):
    exact = UNet2DConditionModel.from_config(unet.config).eval()
    exact.load_state_dict(unet.state_dict())
    run = read_run("plain")
    net = run.initial.double().train()
    latents, context = (run.inputs[f"000/{key}"].double() for key in ("latents", "context"))
    denoiser = Denoiser(exact.double(), net)
    denoiser(latents, run.inputs["000/t"], Condition(context)).square().mean().backward()
    gradients = {name.removeprefix("pairs."): p.grad for name, p in net.named_parameters()}
    zero = last_k_bias(net)
    assert all(gradients[key].abs().max() < 1e-15 for key in zero)
    assert all(gradients[key].abs().max() > 1e-7 for key in gradients if key not in zero)
