"""Rows 42 to 44 and 59 to 74: caches, checkpoints, and what happens while a run goes on."""

import os
import pickle
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from hn.data.batches import Layout
from hn.errors import NumericsError, UserError
from hn.network.module import Hypernetwork
from hn.training.keeping.checkpoint import fault
from hn.training.schedule import Schedule, Stage
from hn.training.state import TrainingState
from hn.training.watching.guard import Guard
from tests import runs
from tests.bad_input.files import Evil
from tests.bad_input.row import Row, Scene, assert_stopped, encoded, plain

TOKEN = "hf_" + "plantedTokenOfNobody"


def when(path: Path, act: Callable[[], None]) -> threading.Thread:
    """Act once a file is there."""

    def wait() -> None:
        while not path.exists():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def removed_while_training(scene: Scene) -> None:
    folder = shutil.copytree(scene.pictures, scene.path / "set")
    thread = when(scene.path / "out/run/metrics.jsonl", lambda: shutil.rmtree(folder))
    said = scene.run(scene.model, folder, max_train_steps=40)
    thread.join()
    assert (said.code, folder.exists()) == (0, False)
    assert len(runs.losses(scene.path / "out/run")) == 40


def stale_cache(scene: Scene) -> None:
    """Of a finished run's cache: one picture was edited, a file of tensors torn."""
    cache = shutil.copytree(scene.make_trained(scene) / "cache", scene.path / "cache")
    folder = shutil.copytree(scene.pictures, scene.path / "set")
    (folder / "3.png").write_bytes(encoded(plain()))
    said = scene.run(scene.model, folder, latent_cache_dir=cache)
    assert said.code == 0, said.err
    found = scene.status()["found"]["latents"]
    assert sum(kind["count"] for kind in found.values()) == 1
    assert next(iter(found.values()))["names"] == ["3.png"]


def torn_cache(scene: Scene) -> None:
    cache = shutil.copytree(scene.make_trained(scene) / "cache", scene.path / "cache")
    for file in (cache / "tensors").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:-200])
    said = scene.run(scene.model, latent_cache_dir=cache)
    assert said.code == 0, said.err
    found = scene.status()["found"]["latents"]
    assert found["damaged"]["count"] >= 1
    assert "damaged, and encoded anew where needed" in said.out


def latents_not_finite(scene: Scene) -> None:
    model = scene.path / "spoilt" / scene.model.name
    shutil.copytree(scene.model, model)
    weights = next((model / "vae").glob("*.safetensors"))
    spoilt = {name: it * torch.nan for name, it in load_file(weights).items()}
    save_file(spoilt, weights, {"format": "pt"})
    said = scene.run(model)
    assert_stopped(said, 6, ["0.png", "not finite"])


def torn_checkpoint(scene: Scene) -> None:
    folder = scene.trained()
    damage(folder / "checkpoints/step-00000004")
    said = scene.run(scene.model, resume_from_checkpoint="latest", max_train_steps=4)
    assert said.code == 0, said.err
    assert "step-00000004 is passed over: changed or missing: run-4.safetensors" in said.out
    assert f"resumed from {folder / 'checkpoints/step-00000002'} at step 2" in said.out


def damage(checkpoint: Path) -> None:
    file = next(checkpoint.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])


def all_torn(scene: Scene) -> None:
    folder = scene.trained()
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        damage(checkpoint)
    said = scene.run(resume_from_checkpoint="latest", max_train_steps=6)
    words = ["resume_from_checkpoint latest", "holds no valid checkpoint (2 damaged)", "start anew"]
    assert_stopped(said, 4, words)
    shutil.rmtree(folder)
    said = scene.run(resume_from_checkpoint="latest")
    assert_stopped(said, 4, ["holds no valid checkpoint (0 damaged)", "start anew"])


def another_run(scene: Scene) -> None:
    scene.trained()
    changes: dict[str, Any] = {"seed": 1, "resolution": 24, "noise_offset": 0.1}
    said = scene.run(resume_from_checkpoint="latest", max_train_steps=6, **changes)
    words = ["seed: 0 then, 1 now", "resolution: [16] then, [24] now", "set these back"]
    assert_stopped(said, 2, words)


def other_world(scene: Scene) -> None:
    """Whoever draws a slot, the slots are those of the global batch."""
    alone = Layout(batch_size=2, accumulation=2)
    dealt = [Layout(batch_size=2, accumulation=1, rank=rank, world_size=2) for rank in (0, 1)]
    assert [alone.slots(0), alone.slots(1)] == [each.slots(0) for each in dealt]
    for step in range(3):
        assert [alone.number(step, micro) for micro in (0, 1)] == [
            each.number(step, 0) for each in dealt
        ]


def pickled_checkpoint(scene: Scene) -> None:
    folder = scene.trained()
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        for name in ("random_states_0.pkl", "custom_checkpoint_0.pkl"):
            (checkpoint / name).write_bytes(pickle.dumps(Evil(scene.path / "canary")))
    newest = folder / "checkpoints/step-00000004"
    said = scene.run(resume_from_checkpoint=newest, max_train_steps=6)
    words = [str(newest), "changed or missing: custom_checkpoint_0.pkl, random_states_0.pkl"]
    assert_stopped(said, 4, words)
    assert not (scene.path / "canary").exists()


def diverging(scene: Scene) -> None:
    folder = scene.trained()
    changes = {"learning_rate": "1e30", "clip_grad_mode": "none", "max_train_steps": 12}
    said = scene.run(scene.model, resume_from_checkpoint="latest", **changes)
    assert_stopped(said, 6, ["step ", "not finite", "lower learning_rate"])
    assert fault(folder / "checkpoints/step-00000004") is None
    assert scene.status()["exit_code"] == 6


def overflowing(scene: Scene) -> None:
    runs.forget_accelerate()
    bounds = Schedule((Stage(1.0, 10),))
    network = Hypernetwork.create((8,), seed=0)
    guard = Guard(Accelerator(cpu=True), network, "norm", bounds)
    state = TrainingState(network, torch.optim.SGD(network.parameters()), 0)
    for _ in range(24):
        guard.check(True, state)
    try:
        guard.check(True, state)
    except NumericsError as error:
        assert error.exit_code == 6
        assert "25 steps in a row" in str(error)
        assert "Use mixed_precision bf16 or no" in str(error)
    else:
        raise AssertionError


@contextmanager
def files_of_at_most(size: int) -> Any:
    """Writing more to a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def full_while_saving(scene: Scene) -> None:
    folder = scene.trained()
    with files_of_at_most(20_000):
        said = scene.run(scene.model, resume_from_checkpoint="latest", max_train_steps=6)
    assert_stopped(said, 5, ["cannot save the checkpoint", "Free some space", "are intact"])
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000004"]
    assert all(fault(folder / "checkpoints" / name) is None for name in kept)


def signalled(scene: Scene) -> None:
    folder = scene.path / "out/run"
    thread = when(folder / "metrics.jsonl", lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = {number: signal.getsignal(number) for number in (2, 10, 15)}
    try:
        said = scene.run(scene.model, max_train_steps=5000)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    thread.join()
    assert said.code == 75, said.err
    status = scene.status()
    assert (status["state"], status["exit_code"]) == ("interrupted", 75)
    assert status["resume_command"].endswith("--resume_from_checkpoint latest")
    (saved,) = (folder / "checkpoints").iterdir()
    assert saved.name == f"step-{status['step']:08d}"
    assert fault(saved) is None


def killed(scene: Scene) -> None:
    """A process that goes on from step 2 is killed; what goes on after it gives the same bits."""
    folder = scene.trained()
    reference = (folder / "run.pt").read_bytes()
    shutil.rmtree(folder / "checkpoints/step-00000004")
    (folder / "run.pt").unlink()
    (folder / "metrics.jsonl").unlink()
    child = os.fork()
    if child == 0:
        scene.run(scene.model, resume_from_checkpoint="latest", max_train_steps=4)
        os._exit(0)
    when(folder / "metrics.jsonl", lambda: os.kill(child, signal.SIGKILL)).join()
    os.waitpid(child, 0)
    said = scene.run(scene.model, resume_from_checkpoint="latest", max_train_steps=4)
    assert said.code == 0, said.err
    assert (folder / "run.pt").read_bytes() == reference


def ended_by(error: Exception, code: int, *words: str) -> Callable[[Scene], None]:
    """What a failure that is not ours becomes."""

    def check(scene: Scene) -> None:
        scene.monkeypatch.syspath_prepend(str(runs.ROOT))
        import train_hypernetwork

        told = train_hypernetwork.as_user_error(error)
        assert isinstance(told, UserError)
        assert told.exit_code == code
        for word in words:
            assert word in str(told)

    return check


def too_large(scene: Scene) -> None:
    levers = ("train_batch_size", "gradient_checkpointing", "resolution")
    ended_by(torch.OutOfMemoryError("CUDA out of memory"), 5, *levers)(scene)
    try:
        torch.empty(2**60)
    except RuntimeError as error:
        ended_by(error, 5, *levers)(scene)


def no_token(scene: Scene) -> None:
    scene.monkeypatch.delenv("HF_TOKEN", raising=False)
    said = scene.run(push_to_hub=True, hub_model_id="me/style")
    assert_stopped(said, 8, ["no token", "hf auth login"])


def token_given(scene: Scene) -> None:
    file = scene.path / "mine.toml"
    file.write_text(f"[hub]\nhub_model_id = '{TOKEN}/x'\n")
    for changes in ({"hub_model_id": f"{TOKEN}/x"}, {"config": file}):
        said = scene.run(**changes)
        assert_stopped(said, 2, ["looks like a token", "hf auth login", "leave it out"])
        assert TOKEN not in said.out + said.err


def token_in_no_file(scene: Scene) -> None:
    scene.monkeypatch.setenv("HF_TOKEN", TOKEN)
    said = scene.run(scene.model, report_to="tensorboard", validation_data_dir=scene.pictures)
    assert said.code == 0, said.err
    assert TOKEN not in said.out + said.err
    files = [path for path in (scene.path / "out").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def failing_preview(scene: Scene) -> None:
    folder = scene.path / "out/run"
    folder.mkdir(parents=True)
    (folder / "previews").write_text("in the way")
    changes = {"validation_prompt": "a star", "validation_inference_steps": 1}
    said = scene.run(scene.model, validation_steps=1, **changes)
    assert said.code == 0, said.err
    assert "warning: the preview fails, the training goes on; step 1: cannot write" in said.out
    assert scene.status()["found"]["previews"]["failed"]["count"] == 2
    assert (folder / "run.pt").exists()


def failing_tracker(scene: Scene) -> None:
    folder = scene.path / "out/run"
    folder.mkdir(parents=True)
    (folder / "tensorboard").write_text("in the way")
    said = scene.run(scene.model, report_to="tensorboard")
    assert said.code == 0, said.err
    assert "warning: tensorboard fails (" in said.out
    assert scene.status()["found"]["trackers"]["tensorboard"]["count"] >= 1
    assert (folder / "run.pt").exists()


LOST = torch.distributed.DistBackendError("Connection closed by peer")
ROWS = [
    Row(42, "pictures removed while training", removed_while_training),
    Row(43, "a picture that is not the one in the cache", stale_cache),
    Row(44, "a torn cache", torn_cache),
    Row(44, "latents that are not finite", latents_not_finite),
    Row(59, "the newest checkpoint is torn", torn_checkpoint),
    Row(60, "all checkpoints are, or there is none", all_torn),
    Row(61, "a checkpoint of another run", another_run),
    Row(62, "another number of processes", other_world),
    Row(63, "pickles in a checkpoint", pickled_checkpoint),
    Row(64, "a gradient that is not finite", diverging),
    Row(65, "float16 overflows again and again", overflowing),
    Row(66, "the disk is full while saving", full_while_saving),
    Row(67, "SIGTERM", signalled),
    Row(68, "kill -9", killed),
    Row(69, "another process is gone", ended_by(LOST, 7, "Its own message", "resume")),
    Row(70, "no memory left", too_large),
    Row(71, "publishing without a token", no_token),
    Row(72, "a token among the settings", token_given),
    Row(72, "a token in the environment", token_in_no_file),
    Row(73, "a preview that fails", failing_preview),
    Row(74, "a tracker that fails", failing_tracker),
]
