"""The web UI's training runs, replayed with our parts: the same losses, the same weights."""

from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import hn
from hn import build
from hn.build.start import Start
from hn.config import Config, ObjectiveConfig, OptimizerConfig, TrainingConfig
from hn.diffusion import objective
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import Denoiser
from hn.training import optimizers
from hn.training.keeping import adoption
from hn.training.watching.guard import Guard
from tests import golden

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
ALPHAS = golden.read_tensors("trajectory/common.safetensors")
SCALE = 65536  # the web UI clips gradients that are still scaled
# golden/README.md's figures: losses, and final weights but for the biases it tells apart. They hold
# for attention that sums as the web UI's does: torch's plain kernel, and products in each layer.
LOSS_TOLERANCE = 5e-7
LOSS_TOLERANCES = {
    "clip-norm-small": 1e-6,  # the web UI's are 5.7e-7 from those in double precision
    "weighted": 2e-6,  # its weights are large
}
TOLERANCES = {  # of the weights, and of k's first bias, of which some gradients are rounding noise
    "sgd": (1e-7, 1e-7),
    "clip-norm-1-scaler": (1e-6, 1e-6),
    "resume": (1e-6, 1e-6),  # with the optimizer state beside its file
    "plain": (6e-5, 2e-4),
    "accum2": (6e-5, 2e-4),
    "clip-value": (6e-5, 2e-4),
    "clip-norm-small": (6e-5, 2e-4),  # the bound in stages
}
# The kernel that a run takes sums in another order; AdamW amplifies that.
FAST_KERNEL = 4


@dataclass(frozen=True)
class Run:
    """What the web UI recorded, as far as a replay needs it."""

    settings: dict
    inputs: dict[str, Tensor]
    start: Start

    @property
    def config(self) -> Config:
        """Its settings in ours."""
        mode = self.settings["clip_grad_mode"]
        return Config(
            optimizer=OptimizerConfig(
                optimizer=self.settings["optimizer"],
                learning_rate=self.settings["learn_rate"],
                clip_grad_mode="none" if mode == "disabled" else mode,
                clip_grad_value=self.settings["clip_grad_value"],
            ),
            training=TrainingConfig(max_train_steps=self.settings["max_steps"]),
        )


def read_run(name: str) -> Run:
    settings = golden.read_json(f"trajectory/{name}/run.json")
    initial = golden.FOLDER / "trajectory" / settings["initial_file"]
    found = adoption.find(initial, "matching", settings["optimizer"])
    return Run(
        settings,
        golden.read_tensors(f"trajectory/{settings['inputs_file']}"),
        Start(hn.load(initial), found),
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the record was made: how many threads share a sum decides its last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    problem = objective.Noised(
        noisy=objective.add_noise(latents, noise, objective.scales_at(timesteps, alphas)),
        timesteps=timesteps,
        target=objective.target(latents, noise, objective.scales_at(timesteps, alphas), "epsilon"),
        weights=objective.timestep_weights(alphas, "epsilon", ObjectiveConfig())[timesteps],
        loss_weights=inputs.get(f"{number:03}/loss_weight"),
    )
    prediction, residual = denoiser(problem.noisy, problem.timesteps, Condition(context=context))
    plain = objective.Objective(ObjectiveConfig(), alphas, "epsilon")
    return plain.loss(prediction, problem, residual)


def unscale(net: hn.Hypernetwork, scale: int) -> None:
    for parameter in net.parameters():
        parameter.grad /= scale


def replay(
    run: Run, unet: UNet2DConditionModel, *, stack_projections: bool = False
) -> tuple[list[float], hn.Hypernetwork]:
    """Losses of all micro-batches and the trained hypernetwork, by the script's loop.

    Two of the web UI's faults are replayed here, not in the product: clipping while gradients are
    scaled, and the rate that an adopted state brought back (`lr_used`, where `lr_reported` was
    asked for).
    """
    settings, net, losses = run.settings, run.start.hypernetwork.train(), []
    rates, bounds = build.build_schedules(run.config)
    plain = Denoiser(unet, net, stack_projections=stack_projections)
    accumulation = settings["gradient_accumulation"]
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    optimizer = build.build_optimizer(run.config, accelerator, net, run.start, rates.rate(0))
    denoiser, optimizer = accelerator.prepare(plain, optimizer)
    guard = Guard(accelerator, net, run.config.optimizer.clip_grad_mode, bounds)
    scale = SCALE if settings["grad_scaler_active"] else 1
    with plain.attachment:
        for recorded in settings["steps"]:
            step = recorded["step"] - 1
            optimizers.set_rate(optimizer, recorded["lr_used"])
            for _ in range(accumulation):
                with accelerator.accumulate(denoiser):
                    loss = micro_loss(denoiser, run.inputs, len(losses))
                    accelerator.backward(loss * scale)
                    losses.append(loss.item())
            guard.clip(step)
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
    tolerance = LOSS_TOLERANCES.get(name, LOSS_TOLERANCE)
    assert losses == pytest.approx(run.settings["micro_losses"], abs=tolerance)
    assert far_off(name, net, slack=1) == {}


@pytest.mark.parametrize("name", TOLERANCES)
def test_rate_and_bound_of_every_step_and_the_last_step_are_the_web_uis(name):
    run = read_run(name)
    rates, bounds = build.build_schedules(run.config)
    steps = range(run.settings["first_step"] - 1, rates.end)
    assert run.start.hypernetwork.provenance.step == steps.start
    assert rates.end == run.settings["final_step"]
    assert [rates.rate(n) for n in steps] == [s["lr_reported"] for s in run.settings["steps"]]
    clipped = run.settings["clip"]
    assert [bounds.rate(n) for n in steps][: len(clipped)] == [clip["value"] for clip in clipped]


@pytest.mark.parametrize("name", ["sgd", "plain"])
def test_the_fast_kernel_and_large_products_change_rounding_only(name, unet):
    run = read_run(name)
    losses, net = replay(run, unet, stack_projections=True)
    tolerance = FAST_KERNEL * LOSS_TOLERANCE
    assert losses == pytest.approx(run.settings["micro_losses"], abs=tolerance)
    assert far_off(name, net, slack=FAST_KERNEL) == {}


def test_a_run_weighted_by_alpha_has_the_web_uis_losses(unet):
    """Ten steps: each loss follows from the weighted gradients of those before it."""
    run = read_run("weighted")
    with sdpa_kernel(SDPBackend.MATH):
        losses, _ = replay(run, unet)
    tolerance = LOSS_TOLERANCES["weighted"]
    assert losses == pytest.approx(run.settings["micro_losses"], abs=tolerance)
    even = {key: tensor for key, tensor in run.inputs.items() if "loss_weight" not in key}
    unweighted, _ = replay(Run(run.settings, even, read_run("weighted").start), unet)
    assert min(abs(a - b) for a, b in zip(losses, unweighted, strict=True)) > 100 * tolerance


def test_the_last_bias_of_k_has_no_gradient_in_double_precision(unet):
    exact = UNet2DConditionModel.from_config(unet.config).eval()
    exact.load_state_dict(unet.state_dict())
    run = read_run("plain")
    net = run.start.hypernetwork.double().train()
    latents, context = (run.inputs[f"000/{key}"].double() for key in ("latents", "context"))
    denoiser = Denoiser(exact.double(), net)
    denoiser(latents, run.inputs["000/t"], Condition(context=context))[0].square().mean().backward()
    gradients = {name.removeprefix("pairs."): p.grad for name, p in net.named_parameters()}
    zero = last_k_bias(net)
    assert all(gradients[key].abs().max() < 1e-15 for key in zero)
    assert all(gradients[key].abs().max() > 1e-7 for key in gradients if key not in zero)
