"""Several hypernetworks in one file: exact where it says so, refused where it would not be."""

import pytest
import torch

import hn
from hn.errors import ModelError, OptionError
from hn.network.contents import Contents
from hn.network.surgery import blending, resizing
from tests import runs
from tests.surgery import nets


@torch.no_grad()
def outputs(stack, dim):
    """What k and v read of the same contexts, in float64."""
    wide = [(Contents.of(net).build().double(), strength) for net, strength in stack]
    return torch.cat(hn.transform_context(nets.contexts(dim), wide))


def added(stack, dim):
    """x + s1 m1(x) + s2 m2(x), from each alone."""
    x = torch.cat([nets.contexts(dim)] * 2)
    return x + sum(outputs([entry], dim) - x for entry in stack)


def error(net, truth, dim):
    return float((outputs([(net, 1.0)], dim) - truth).norm() / truth.norm())


KINDS = {
    "relu": (
        {"activation_func": "relu", "layer_structure": (1, 2, 1)},
        {"activation_func": "relu", "layer_structure": (1, 0.3, 1), "dims": (24, 40)},
    ),
    "three layers, odd multipliers, one name or the other": (
        {"activation_func": "swish", "layer_structure": (1, 0.7, 1.3, 1)},
        {"activation_func": "hardswish", "layer_structure": (1, 0.1, 0.7, 1)},
    ),
    "constant at zero": (
        {"activation_func": "sigmoid", "layer_structure": (1, 0.35, 1)},
        {"activation_func": "sigmoid", "layer_structure": (1, 0.35, 1)},
    ),
    "linear, of any depth": (
        {"layer_structure": (1, 2, 1)},
        {"layer_structure": (1, 0.5, 2, 1), "dropout_structure": (0, 0.3, 0, 0)},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_is_exact(kind):
    stack = [(nets.make(seed, **it), (0.8, -0.5)[seed]) for seed, it in enumerate(KINDS[kind])]
    both = blending.add(stack)
    assert set(both.dims) == {dim for net, _ in stack for dim in net.dims}
    for dim in both.dims:
        present = [(net, strength) for net, strength in stack if dim in net.dims]
        assert error(both, added(present, dim), dim) < 1e-6
    assert both.provenance.optional_info == "sum of net0 (0.8), net1 (-0.5)"


def test_a_sequence_of_linear_ones_is_exact_and_so_is_one_of_different_widths():
    linear = [(nets.make(0), 0.8), (nets.make(1, layer_structure=(1, 0.5, 2, 1)), 0.4)]
    apart = [
        (nets.make(2, dims=(16,), activation_func="mish"), 0.8),
        (nets.make(3, dims=(24,), activation_func="mish"), 0.4),
    ]
    for stack in (linear, apart):
        one = blending.compose(stack)
        for dim in one.dims:
            assert error(one, outputs(stack, dim), dim) < 1e-6
    assert blending.compose(linear).config.layer_structure == (1, 1)


def test_an_average_is_that_of_the_weights():
    first, second = (nets.make(seed, activation_func="mish", is_layer_norm=True) for seed in (0, 1))
    mean = blending.average([(first, 3.0), (second, 1.0)])
    for key, tensor in mean.tensors().items():
        expected = 0.75 * first.tensors()[key] + 0.25 * second.tensors()[key]
        torch.testing.assert_close(tensor, expected)
    with pytest.raises(OptionError, match="sum to 0"):
        blending.average([(first, 1.0), (second, -1.0)])


@pytest.mark.parametrize(
    ("how", "structures", "reason"),
    [
        ("average", ({}, {"layer_structure": (1, 1)}), r"net1 \(1, 1\)"),
        ("average", ({}, {"dims": (16,)}), "has dims"),
        ("add", ({"activation_func": "relu"}, {"activation_func": "mish"}), "distil"),
        ("add", ({"activation_func": "relu"}, {}), "activation_func"),
        ("add", [{"activation_func": "relu", "is_layer_norm": True}] * 2, "layer norm"),
        ("add", [{"activation_func": "relu", "activate_output": True}] * 2, "activated output"),
        ("add", [{"activation_func": "prelu"}] * 2, "slope"),
        ("compose", [{"activation_func": "relu"}] * 2, "net0, net1 rewrite contexts of the same"),
    ],
)
def test_what_is_not_exact_is_refused(how, structures, reason):
    blend = [(nets.make(seed, **it), 1.0) for seed, it in enumerate(structures)]
    with pytest.raises(ModelError, match=reason):
        getattr(blending, how)(blend)


@pytest.mark.parametrize("structure", [(1, 1), (1, 1.5, 1), (1, 1, 2, 1.2, 1)])
def test_a_wider_structure_computes_the_same(structure):
    net = nets.make(0)
    resized = resizing.resize(net, structure)
    assert resized.worst < 1e-12
    for dim in net.dims:
        assert error(resized.net, outputs([(net, 1.0)], dim), dim) < 1e-6


def test_a_narrower_structure_says_what_it_lacks():
    net = nets.make(0, dims=(16,))
    resized = resizing.resize(net, (1, 0.25, 1))
    module = resized.net.module(16, "k").linear
    matrix = (module[1].weight @ module[0].weight).detach()
    whole = net.module(16, "k").linear
    whole = (whole[1].weight @ whole[0].weight).detach()
    lost = torch.linalg.svdvals(whole)[4:].norm() / whole.norm()
    assert 0 < resized.errors[16, "k"] == pytest.approx(float(lost), rel=1e-4)
    assert float((matrix - whole).norm() / whole.norm()) == pytest.approx(float(lost), rel=1e-4)
    low = resizing.resize(resized.net, (1, 0.25, 1))
    assert low.worst < 1e-6  # it is of that rank already


def test_the_tool_blends_files_and_resizes(run, tmp_path):
    paths = [tmp_path / f"net{seed}.pt" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        hn.save(nets.make(seed), path)
    output = tmp_path / "both.pt"
    flags = [
        "-o",
        output,
        "--how",
        "sum",
        "--weights",
        "0.5",
        "2",
        "--layer_structure",
        "1, 0.5, 1",
    ]
    result = run("blend", *paths, *flags)
    assert result.returncode == 0, result.stderr
    assert "sum of net0 (0.5), net1 (2), resized to 1-0.5-1" in result.stdout
    assert "relative error up to" in result.stdout
    assert "ComfyUI    runs the same" in result.stdout
    both = hn.load(output)
    assert both.config.layer_structure == (1, 0.5, 1)
    assert (both.provenance.name, both.provenance.step) == ("both", 0)
    alone = tmp_path / "alone.pt"
    assert run("blend", paths[0], "-o", alone, "--layer_structure", "1, 1").returncode == 0
    assert hn.load(alone).provenance.optional_info == "net0, resized to 1-1"
    for arguments, code in [
        ([*paths, "-o", output], 2),
        ([paths[0], "-o", tmp_path / "x.pt"], 2),
        ([*paths, "-o", tmp_path / "x.txt"], 4),
        ([*paths, "-o", tmp_path / "x.pt", "--weights", 1, 1, 1], 2),
        ([tmp_path, "-o", tmp_path / "x.pt"], 4),
    ]:
        assert run("blend", *arguments).returncode == code
    assert not (tmp_path / "x.pt").exists()


def test_the_checkpoints_of_a_run_are_averaged(model, pictures, run, tmp_path, fresh_accelerate):
    flags = runs.settings(model, pictures, tmp_path, checkpointing_steps=1, max_train_steps=2)
    assert runs.train_here(flags) == 0
    folder = tmp_path / "run" / "checkpoints"
    assert run("blend", folder, "-o", tmp_path / "mean.pt").returncode == 0
    parts = [hn.load(path) for path in sorted(folder.glob("step-*/*.safetensors"))]
    assert len(parts) == 2
    mean = hn.load(tmp_path / "mean.pt")
    assert mean.provenance.optional_info == "average of run-1 (1), run-2 (1)"
    for key, tensor in mean.tensors().items():
        expected = sum(part.tensors()[key] for part in parts) / 2
        torch.testing.assert_close(tensor, expected)
