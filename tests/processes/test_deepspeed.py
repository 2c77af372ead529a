"""What DeepSpeed deals out is learnt, guarded and kept as in any other run."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hn import cli
from hn.build.estimates import estimate, step_of
from hn.diffusion.loading.outline import Outline
from hn.diffusion.memory.plan import Plan
from hn.diffusion.sharding import import_deepspeed
from hn.errors import OptionError
from tests import runs

SHARDED = {"shard_optimizer": True}
STEPS = {"max_train_steps": 5, "checkpointing_steps": 3, "train_batch_size": 1}
HALF = "checkpoints/step-00000003"
OPTIMIZER = "checkpoints/step-00000005/resume/optimizer.safetensors"
# Every kind of state: in groups, none, of numbers alone, summed over micro-batches, after clipping.
KINDS = {
    "groups": {"width_learning_rates": ["16=0.5", "24=2"]},
    "sgd": {"optimizer": "SGD"},
    "momentum": {"optimizer": "SGD", "optimizer_args": ["momentum=0.9"]},
    "nadam": {"optimizer": "NAdam"},
    "lion": {"optimizer": "lion_pytorch.Lion", "learning_rate": "1e-4"},
    "accumulation": {"gradient_accumulation_steps": 2},
    "norm": {"clip_grad_value": "1e-3"},
    "value": {"clip_grad_mode": "value", "clip_grad_value": "1e-4"},
}


@runs.NEEDS_DEEPSPEED
def test_a_bad_gradient_changes_nothing_and_it_goes_on_to_the_same_bits(
    zygote, model, pictures, tmp_path
):
    """The gradient is bad on one process; what follows is as without DeepSpeed."""
    train = _Trainer(zygote, model, pictures, tmp_path)
    plain, sharded = train("plain", fault=True), train("sharded", fault=True, **SHARDED)
    for rank in (0, 1):
        noted = json.loads((sharded.parent / f"noted-{rank}").read_text())
        assert noted == [[step, step != 1, step != 1] for step in range(5)]
    assert runs.losses(sharded) == pytest.approx(runs.losses(plain), rel=2e-6)
    assert _difference(sharded, plain) < 2e-6
    again = train("again", resume_from_checkpoint=sharded / HALF, **SHARDED)
    assert runs.same_tensors(again / "run.pt", sharded / "run.pt")
    assert (again / OPTIMIZER).read_bytes() == (sharded / OPTIMIZER).read_bytes()


@runs.NEEDS_DEEPSPEED
@pytest.mark.slow
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_any_state_goes_on_with_and_without(zygote, model, pictures, tmp_path, changes):
    train = _Trainer(zygote, model, pictures, tmp_path, **changes)
    plain, sharded = train("plain"), train("sharded", **SHARDED)
    assert _difference(sharded, plain) < 2e-6
    to = train("to", resume_from_checkpoint=plain / HALF, **SHARDED)
    back = train("back", resume_from_checkpoint=sharded / HALF)
    assert _difference(to, plain) < 2e-6
    assert _difference(back, sharded) < 2e-6
    shapes = [
        {name: tensor.shape for name, tensor in load_file(run / OPTIMIZER).items()}
        for run in (plain, sharded)
    ]
    assert shapes[0] == shapes[1]


@runs.NEEDS_DEEPSPEED
@pytest.mark.slow
def test_of_the_base_model_little_more_than_one_block_is_gathered(model):
    """Looked at within every layer, in the forward and the backward pass of the second step."""
    script = str(Path(__file__).parent / "gathered.py")
    result = runs.run([*runs.TORCHRUN[:-1], script], [str(model)])
    assert result.returncode == 0, result.stderr
    whole, block, most = json.loads(result.stdout.splitlines()[-1])
    assert block <= most < 1.3 * block < whole / 2


def test_the_memory_of_a_part_is_predicted(model, pictures, tmp_path):
    flags = runs.settings(model, pictures, tmp_path)
    outline, parts = Outline.read(str(model)), []
    for more in ([], ["--shard_optimizer"]):
        config = cli.parse([*flags, *more])
        step = step_of(config, outline, torch.float32, processes=8)
        found = estimate(config, outline, step, Plan(), device="cpu", processes=8)
        parts.append(found.parts)
    plain, sharded = parts
    weights = plain["hypernetwork"]
    assert plain["gradients"] == 2 * weights  # and DDP's buckets
    assert sharded["gradients"] == weights + weights // 8
    assert sharded["optimizer"] == (plain["optimizer"] + weights) // 8


@pytest.mark.usefixtures("fresh_accelerate")
def test_one_process_has_nobody_to_share_with(model, pictures, tmp_path, capsys):
    assert runs.train_here(runs.settings(model, pictures, tmp_path, **SHARDED)) == 2
    assert "shard_optimizer is for several processes" in capsys.readouterr().err


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(OptionError, match=r"pip install -e '.\[deepspeed\]'"):
        import_deepspeed()


@pytest.mark.parametrize("flags", [["--optimizer", "Adafactor"], ["--use_8bit_adam"]])
def test_an_optimizer_that_looks_at_whole_weights_is_refused(flags):
    with pytest.raises(OptionError, match=r"cuts through weights.*found '(Adaf|use_8)"):
        cli.parse(["--config", "demo", "--shard_optimizer", *flags])


class _Trainer:
    """Trains with two processes, each run in a folder of its own."""

    def __init__(self, zygote, model, pictures, folder, **changes):
        self._zygote, self._model, self._pictures = zygote, model, pictures
        self._folder, self._changes = folder, changes

    def __call__(self, name, *, fault=False, **changes):
        folder = self._folder / name
        changes = STEPS | self._changes | changes
        flags = runs.settings(self._model, self._pictures, folder, **changes)
        ended = self._zygote.run(flags, folder, 2, faults={1: {1: "grad"}} if fault else None)
        assert ended.codes == [0, 0], ended.said
        return folder / "run"


def _difference(first, second):
    return runs.largest_difference(first / "run.pt", second / "run.pt", without="k.linear.2.bias")
