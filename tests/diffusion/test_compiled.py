"""Compiled blocks: what they compute, and what becomes of a compiler that errs."""

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import Denoiser
from hn.errors import OptionError
from tests import runs
from tests.diffusion.test_adapters import SMALL
from tests.diffusion.test_attention import make_inputs, make_net
from tests.tiny import make_unet


def as_it_is(graph, inputs):
    return make_boxed_func(graph)


def a_little_wrong(graph, inputs):
    return make_boxed_func(
        lambda *args: [None if out is None else out * 1.01 for out in graph(*args)]
    )


def fails(graph, inputs):
    raise ValueError("no such instruction")


PLANTED = aot_autograd(fw_compiler=as_it_is, bw_compiler=a_little_wrong)
torch._dynamo.register_backend(PLANTED, name="planted")
torch._dynamo.register_backend(fails, name="failing")


def make(backend, **changes):
    torch.manual_seed(0)
    unet = make_unet(**SMALL).eval()
    net = make_net((16, 24), **changes).train()
    torch._dynamo.reset()
    return Denoiser(unet, net, compile_backend=backend)


def gradients(denoiser, batch=2):
    noisy, timesteps, context = (x[:batch] for x in make_inputs())
    torch.manual_seed(5)
    prediction, _ = denoiser(noisy, timesteps, Condition(context=context))
    denoiser.hypernetwork.zero_grad()
    (prediction - noisy).square().mean().backward()
    found = [p.grad for p in denoiser.hypernetwork.parameters()]
    return torch.cat([gradient.flatten() for gradient in found])


def test_gradients_are_those_without_and_dropout_draws_the_same():
    expected, compiled = (make(it, dropout_structure=(0, 0.2, 0)) for it in (None, "aot_eager"))
    torch.testing.assert_close(gradients(compiled), gradients(expected), rtol=1e-4, atol=1e-7)
    assert compiled.compiled.verdict.startswith("used: gradients differ by ")
    frames = torch._dynamo.utils.counters["frames"]["ok"]
    assert frames >= 4
    with torch.no_grad():  # a preview compiles nothing
        noisy, timesteps, context = (torch.cat([x, x]) for x in make_inputs())
        compiled(noisy, timesteps, Condition(context=context))
    assert torch._dynamo.utils.counters["frames"]["ok"] == frames


@pytest.mark.parametrize(
    ("backend", "verdict"),
    [("planted", "not used: its gradient is off by "), ("failing", "not used: the compiler fails")],
)
def test_a_compiler_that_errs_is_noticed_and_not_used(backend, verdict, capsys):
    expected, compiled = make(None), make(backend)
    assert torch.equal(gradients(compiled), gradients(expected))
    assert compiled.compiled.verdict.startswith(verdict)
    assert f"torch_compile is {verdict}" in capsys.readouterr().out
    assert not any("forward" in vars(module) for module in compiled.unet.modules())


def test_an_unknown_backend_is_refused():
    with pytest.raises(OptionError, match=r"'inducktor'.*did you mean 'inductor'.*aot_eager"):
        make("inducktor")


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_inductor_is_right_or_not_used(batch):
    expected, compiled = make(None), make("inductor")
    torch.testing.assert_close(
        gradients(compiled, batch), gradients(expected, batch), rtol=1e-3, atol=1e-6
    )
    assert compiled.compiled.verdict != "not used yet"


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_compiled_run_learns_as_another_and_resumes_to_the_bit(model, pictures, tmp_path):
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager", "dims": [24]}
    flags = {"max_train_steps": 4, "checkpointing_steps": 2, **compiled}
    whole = runs.settings(model, pictures, tmp_path / "whole", **flags)
    assert runs.train_here(whole) == 0
    halves = runs.settings(model, pictures, tmp_path / "halves", **flags | {"max_train_steps": 2})
    assert runs.train_here(halves) == 0
    rest = runs.settings(model, pictures, tmp_path / "halves", **flags)
    assert runs.train_here([*rest, "--resume_from_checkpoint", "latest"]) == 0
    assert runs.same_tensors(tmp_path / "whole/run/run.pt", tmp_path / "halves/run/run.pt")
    without = {"max_train_steps": 4, "dims": [24]}
    assert runs.train_here(runs.settings(model, pictures, tmp_path / "plain", **without)) == 0
    losses = [runs.losses(tmp_path / name / "run") for name in ("whole", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert "used: gradients differ" in runs.status(tmp_path / "whole/run")["torch_compile"]
