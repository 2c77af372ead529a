"""Two processes are one process with twice the accumulation."""

import signal
import time
from typing import cast

import pytest
import torch
from accelerate import Accelerator

from hn.network.files import save
from hn.training.keeping.saving import Checkpoints
from hn.training.watching.readings import Arriving
from hn.training.watching.signals import Stop
from tests import runs

CHANGES = {
    "latent_sampling": "random",
    "random_crop": True,
    "random_flip": True,
    "max_train_steps": 5,
    "stratified_timesteps": True,
    "residual_penalty": 0.1,
    "use_ema": True,
    "max_weight_norm": 4,
}
LOOKING = {
    "validation_split": 2,
    "validation_steps": 2,
    "validation_prompt": ["a star"],
    "validation_strengths": [0.0, 1.0],
    "validation_inference_steps": 1,
    "checkpointing_steps": 2,
}


def launcher(name, *more):
    """The command of a configuration in `accelerate_configs/`, in float32."""
    path = str(runs.ROOT / "accelerate_configs" / f"{name}.yaml")
    options = ["--config_file", path, "--mixed_precision", "no", *more]
    return [*runs.ACCELERATE, *options, runs.SCRIPT]


@pytest.fixture(autouse=True)
def own_signals():
    """Handlers as they were before."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def alone(zygote, model, pictures, tmp_path_factory):
    """One process, accumulation 2."""
    folder = tmp_path_factory.mktemp("alone")
    flags = runs.settings(
        model, pictures, folder, gradient_accumulation_steps=2, **CHANGES | LOOKING
    )
    ended = zygote.run(flags, folder)
    assert ended.codes == [0], ended.said
    return folder / "run"


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("command", "changes", "tolerance"),
    [
        pytest.param(runs.TORCHRUN, {}, 2e-6, id="torchrun", marks=pytest.mark.slow),
        pytest.param(launcher("cpu"), {}, 2e-6, id="cpu", marks=pytest.mark.slow),
        pytest.param(launcher("ddp", "--num_processes", "2"), {}, 2e-6, id="ddp"),
        pytest.param(
            launcher("fsdp2", "--num_processes", "2"),
            {"gradient_checkpointing": True},
            1e-5,  # its weights lie elsewhere in memory, where kernels round otherwise
            id="fsdp2",
        ),
        pytest.param(
            launcher("deepspeed_zero2", "--num_processes", "2"),
            {},
            2e-6,
            id="zero2",
            marks=[pytest.mark.slow, runs.NEEDS_DEEPSPEED],
        ),
        pytest.param(
            launcher("deepspeed_zero3", "--num_processes", "2"),
            {"gradient_checkpointing": True},
            1e-5,
            id="zero3",
            marks=runs.NEEDS_DEEPSPEED,
        ),
    ],
)
def test_two_processes_equal_one_with_accumulation(
    model, pictures, tmp_path, alone, command, changes, tolerance
):
    """The gradients are summed in another order: 2e-6 of 0.6 after 5 AdamW steps.

    But for the last biases of k: their gradient is zero, so Adam follows what rounding leaves.
    """
    flags = runs.settings(
        model, pictures, tmp_path, expect_world_size=2, **CHANGES | LOOKING | changes
    )
    result = runs.run(command, flags)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    for name in ("run.pt", "run-ema.pt"):
        difference = runs.largest_difference(alone / name, run / name, without="k.linear.2.bias")
        assert difference < tolerance
    for name in ("loss", "heldout_loss", "heldout_ema_loss", "capped_weights"):
        ours, theirs = runs.numbers(run, name), runs.numbers(alone, name)
        assert ours == pytest.approx(theirs, rel=2e-6)
    assert runs.numbers(run, "capped_weights")[-1] > 0
    files, expected = (
        {str(it.relative_to(folder)) for it in folder.rglob("*") if "cache" not in it.parts}
        for folder in (run, alone)
    )
    assert files == expected
    sharded = "shard_base_model = true" in (run / "config.toml").read_text()
    assert sharded == bool(changes)
    if sharded:
        assert "dealt out: 0.13 of 0.27 million weights in each of 2" in result.stdout
        # one process with a whole model goes on from what several saved
        more = {**changes, "gradient_accumulation_steps": 2, "max_train_steps": 6}
        flags = runs.settings(model, pictures, tmp_path, **CHANGES | LOOKING | more)
        assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 0
        assert runs.status(run)["step"] == 6


def save_everywhere(folder, rank):
    """Let a process of the zygote write its own weights at the end, too."""
    publish = Checkpoints.publish

    def everywhere(self, state, *arguments, **finished):
        save(state.hypernetwork, folder / f"rank{rank}/net.safetensors")
        publish(self, state, *arguments, **finished)

    Checkpoints.publish = everywhere


def test_ranks_hold_identical_weights_and_end_together(zygote, model, pictures, tmp_path):
    """The main process measures; both must know that patience is over, and which was the best."""
    held_out = {"validation_split": 2, "validation_steps": 2, "train_batch_size": 1}
    held_out |= {"early_stop_patience": 1, "keep_best": True, "learning_rate": "0.02:2, 0.5"}
    flags = runs.settings(model, pictures, tmp_path, **CHANGES | held_out)
    ended = zygote.run(flags, tmp_path, world=2, before=save_everywhere)
    assert ended.codes == [0, 0], ended.said
    assert "early_stop_patience 1" in runs.status(tmp_path / "run")["reason"]
    assert (tmp_path / "run/checkpoints/best").readlink().name == "step-00000002"
    ranks = [(tmp_path / f"rank{rank}/net.safetensors").read_bytes() for rank in (0, 1)]
    assert ranks[0] == ranks[1]


@pytest.mark.slow
def test_another_number_of_processes_than_expected_is_refused(model, pictures, tmp_path):
    """`accelerate launch --cpu --num_processes 2` starts one."""
    command = [*runs.ACCELERATE, "--cpu", "--num_processes", "2", runs.SCRIPT]
    result = runs.run(command, runs.settings(model, pictures, tmp_path, expect_world_size=2))
    assert result.returncode != 0
    assert "expect_world_size is 2, but 1 processes run" in result.stderr


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_and_stops_both(model, pictures, tmp_path):
    flags = runs.settings(model, pictures, tmp_path, max_train_steps=100000, checkpointing_steps=3)
    folder = tmp_path / "run"
    with runs.start(runs.TORCHRUN, flags) as process:
        end = time.monotonic() + 90
        while not (folder / "checkpoints/step-00000003").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    status = runs.status(folder)
    assert status["state"] == "interrupted"
    assert (folder / f"checkpoints/step-{status['step']:08d}/MANIFEST.json").exists()


def test_a_signal_while_processes_compare_their_counts_is_not_lost():
    """It fell between reading the own count and writing the common one, and was forgotten."""
    stop = Stop(cast(Accelerator, _Comparing(others=0)))
    assert not stop.requested()
    stop = Stop(cast(Accelerator, _Comparing(others=0, signal_meanwhile=True)))
    assert not stop.requested()  # the others have not heard of it
    assert stop.requested()
    assert not stop.in_a_hurry()


def test_another_processes_signals_do_not_add_up_to_haste():
    """A launcher passes one Ctrl-C on to all of them."""
    stop = Stop(cast(Accelerator, _Comparing(others=1)))
    stop.requested()
    signal.raise_signal(signal.SIGTERM)
    assert stop.requested() and not stop.in_a_hurry()
    signal.raise_signal(signal.SIGTERM)
    assert stop.in_a_hurry()


def test_on_a_gpu_a_signal_is_heard_a_step_later_and_no_step_waits(monkeypatch):
    init = Arriving.__init__

    def late(self, numbers):
        init(self, numbers)
        self.is_here = False

    monkeypatch.setattr(Arriving, "__init__", late)
    stop = Stop(cast(Accelerator, _Comparing(others=0)))
    assert not stop.requested()
    signal.raise_signal(signal.SIGTERM)
    assert not stop.requested()
    assert stop.requested()
    assert not stop.in_a_hurry()


class _Comparing:
    """One of two processes, the other having counted `others` signals."""

    num_processes = 2
    device = "cpu"

    def __init__(self, *, others: int, signal_meanwhile: bool = False) -> None:
        self.others = others
        self.signal_meanwhile = signal_meanwhile

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        if self.signal_meanwhile:
            signal.raise_signal(signal.SIGTERM)
            self.signal_meanwhile = False
        return torch.cat([own, torch.tensor([self.others])])
