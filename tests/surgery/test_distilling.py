"""Hypernetworks that learn what others give: in another structure, or several in one."""

import pytest
import torch

import hn
from hn.errors import ModelError
from hn.network.surgery import distilling
from hn.network.surgery.distilling import Lessons, Rows
from tests.surgery import nets

DIM = 16


def lessons_of(stack, count, seed=0):
    """Random contexts, and what the stack adds to them."""
    rows = Rows(DIM, torch.device("cpu"))
    x = nets.contexts(DIM, count, seed).float()
    with torch.no_grad():
        k, v = hn.transform_context(x, stack)
    added = {"k": (k - x)[0], "v": (v - x)[0]}
    for part in torch.arange(count).chunk(count // distilling.KEPT):
        rows.add(x[0][part], {s: y[part] for s, y in added.items()}, torch.ones(len(part)))
    return Lessons.of({"layer": rows})


def distil(stack, layer_structure, activation_func, steps=300):
    config = distilling.structure_for(stack, layer_structure, activation_func)
    student = distilling.start(stack, config)
    others = lessons_of(stack, 256, seed=1)
    before = distilling.errors_of(student, others)
    student = distilling.teach(student, lessons_of(stack, 2048), steps)
    return student, before, distilling.errors_of(student, others)


def teacher(**structure):
    return nets.make(0, dims=(DIM,), **structure)


def test_another_activation_begins_with_the_weights_and_gets_nearer():
    student, before, after = distil([(teacher(activation_func="gelu"), 1.0)], None, "mish")
    assert student.config.activation_func == "mish"
    assert max(before.values()) < 0.5  # it began near
    assert max(after.values()) < 0.5 * max(before.values())
    assert student.provenance.step == 0
    assert student.provenance.optional_info == "distilled from net0 (1.0)"


def test_several_with_layer_norm_become_one_without():
    stack = [
        (teacher(activation_func="relu", is_layer_norm=True), 0.8),
        (teacher(activation_func="mish"), 0.4),
    ]
    student, before, after = distil(stack, (1, 2, 1), "mish", steps=200)
    assert not student.config.is_layer_norm
    assert min(before.values()) == pytest.approx(1)  # it adds nothing at first
    assert max(after.values()) < 0.5


def test_a_linear_structure_is_solved_at_once():
    stack = [(teacher(), 0.8), (teacher(layer_structure=(1, 0.5, 1)), 0.4)]
    _, _, after = distil(stack, (1, 2, 1), "linear")
    assert max(after.values()) < 1e-3
    _, _, narrow = distil(stack, (1, 0.25, 1), "linear")
    assert 0.05 < max(narrow.values()) < 1


def test_what_runs_over_the_batch_is_refused():
    with pytest.raises(ModelError, match="runs over the batch"):
        distil([(teacher(activation_func="softmax"), 1.0)], None, "mish")
    with pytest.raises(ModelError, match="is not known"):
        distil([(teacher(), 1.0)], None, "nonsense")


def test_the_tool_distils_for_comfyui(model, pictures, run, tmp_path):
    net = nets.make(0, activation_func="gelu")
    hn.save(net, tmp_path / "net.pt")
    output = tmp_path / "mish.pt"
    result = run(
        "distil", tmp_path / "net.pt", "-o", output, "--base", model, "--fit_steps", 60,
        "--prompts", *(f"a {word} star" for word in ("red", "blue", "big", "old", "white")),
        "--validation_data_dir", pictures, "--steps", 2, "--size", 16, 16,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        if line.startswith("width"):
            before, after = (float(it.strip(" %")) for it in line.split("error")[1].split("->"))
            assert after < before < 100
    assert "of the gain is kept" in result.stdout
    assert "ComfyUI    runs the same" in result.stdout
    assert hn.load(output).provenance.name == "mish"
    again = run("distil", tmp_path / "net.pt", "-o", output, "--base", model)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    refused = run("distil", tmp_path / "net.pt", "-o", tmp_path / "x.pt", "--fit_steps", 0)
    assert (refused.returncode, "fit_steps must be" in refused.stderr) == (2, True)
