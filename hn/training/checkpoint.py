"""Checkpoints: `checkpoints/step-00001000/`, whole or absent.

    <name>-1000.safetensors, .pt    the artifact: what users share; of an average <name>-1000-ema
    resume/optimizer.safetensors    what only we read: the optimizer's tensors,
    resume/averages.safetensors     those of averages of the weights, if there are any,
    state.json                      and everything else, such as the dropout in training, and where
                                    in a stream each process is
    MANIFEST.json                   size and SHA-256 of every file, written last

A folder is written under a temporary name, flushed, renamed and read back; only then an older one
may go. No pickle lies on the way back, and no generator state: randomness is a function of the step
(`hn.rng`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save

from hn import __version__
from hn.errors import ModelError, OptionError, StorageError
from hn.network.files import load as load_hypernetwork
from hn.storage import sync_folder, write_bytes
from hn.training import artifacts
from hn.training.best import Best, link
from hn.training.state import TrainingState
from hn.training.trees import flatten, unflatten

PREFIX = "step-"
MANIFEST = "MANIFEST.json"
OPTIMIZER = "resume/optimizer.safetensors"
AVERAGES = "resume/averages.safetensors"


class Checkpoints:
    """Saves when it is due, keeps the newest `limit`, and finds the one to resume from.

    With `keep_best` the best is saved, too, stays, and has a link of that name.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        name: str,
        *,
        every: int,
        limit: int | None,
        keep_best: bool = False,
        optimizer_name: str | None = None,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        self._accelerator = accelerator
        self._folder = folder
        self._name = name
        self._every = every
        self._limit = limit
        self._keep_best = keep_best
        self._optimizer_name = optimizer_name  # whose state is written for the web UI, too
        self._confirm = confirm  # raises if what would be saved is spoilt
        self._saved_step = -1

    def __call__(self, state: TrainingState) -> None:
        """Save if this step is due."""
        best = self._keep_best and state.step == state.best.step
        if best or (self._every and state.step % self._every == 0):
            self.save(state)

    def save(self, state: TrainingState) -> None:
        """Save the state, unless this step is saved; the main process writes, all wait for it."""
        path = path_of(self._folder, state.step)
        self._confirm()
        state.hypernetwork.describe(step=state.step)
        if self._saved_step != state.step:
            streams = [] if state.stream is None else gather_object([state.stream.state()])
            if self._accelerator.is_main_process:
                write_checkpoint(path, state, self._name, self._optimizer_name, streams)
                self._rotate(state.best.step if self._keep_best else None)
        self._saved_step = state.step
        self._accelerator.wait_for_everyone()

    def publish(self, state: TrainingState, folder: Path, *, finished: bool) -> None:
        """Put the artifact into the run's folder, if it is finished."""
        if finished and self._accelerator.is_main_process:
            _write_artifacts(state, folder / self._name, self._optimizer_name)

    def _rotate(self, best: int | None) -> None:
        """Link to the best; remove the oldest valid ones beyond the limit, of which 2 stay."""
        if best is not None:
            link(path_of(self._folder, best))
        if self._limit is None:
            return
        valid = [path for path in list_checkpoints(self._folder) if fault(path) is None]
        for path in valid[: -max(2, self._limit)]:
            if best is None or path != path_of(self._folder, best):
                shutil.rmtree(_set_aside(path))


def write_checkpoint(
    path: Path,
    state: TrainingState,
    name: str,
    optimizer_name: str | None = None,
    streams: Sequence[dict[str, Any]] = (),
) -> None:
    """Write one checkpoint folder, whole or not at all, and verify it. Raises `StorageError`.

    `streams`: where in its stream each process is, if there are any.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        stem = f"{name}-{state.step}"  # of its own: the web UI remembers files by the name inside
        _write_artifacts(state, temporary / stem, optimizer_name)
        description, tensors = flatten(state.optimizer.state_dict())
        write_bytes(temporary / OPTIMIZER, save(tensors))
        if averages := state.averages.tensors():
            write_bytes(temporary / AVERAGES, save(averages))
        _write_json(temporary / "state.json", _describe(state, stem, description, streams))
        _write_json(temporary / MANIFEST, manifest(temporary))
        sync_folder(temporary)
        # Left by a run that went on from an earlier step; nothing of it goes before its successor.
        before = _set_aside(path) if path.exists() else None
        os.replace(temporary, path)
        sync_folder(path.parent)
        if before is not None:
            shutil.rmtree(before)
    except (OSError, StorageError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(
            f"cannot save the checkpoint {path}: {error} Older checkpoints are intact."
        ) from error
    damage = fault(path)
    if damage is not None:
        raise StorageError(
            f"the checkpoint {path} reads back differently ({damage}): is the disk failing?"
        )


def _write_artifacts(state: TrainingState, stem: Path, optimizer_name: str | None) -> None:
    """The hypernetwork and its averages; the optimizer's state lies beside the first alone."""
    optimizer_state = state.optimizer.state_dict()
    for view in state.averages:
        with view.applied():
            artifacts.write(
                state.hypernetwork,
                stem.with_name(f"{stem.name}{view.tail}"),
                None if view.name else optimizer_name,
                optimizer_state,
            )


def _set_aside(path: Path) -> Path:
    """Rename a checkpoint that is to go, so that none is ever half gone; returns its new name."""
    doomed = path.with_name(f".del-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    return doomed


def restore(path: Path, state: TrainingState, process: int = 0) -> None:
    """Load the checkpoint; of the streams, that of this process.

    Raises `ModelError` (damaged) or `OptionError` (another run).
    """
    damage = fault(path)
    if damage is not None:
        raise ModelError(f"the checkpoint {path} cannot be used: {damage}")
    saved = json.loads((path / "state.json").read_text(encoding="utf-8"))
    check_fingerprint(saved["fingerprint"], state.fingerprint, path)
    net = load_hypernetwork(path / f"{saved['artifact']}.safetensors")
    state.hypernetwork.take_weights(net)
    state.hypernetwork.describe(step=saved["step"])
    if (path / AVERAGES).exists():
        state.averages.restore(load_file(path / AVERAGES))
    state.optimizer.load_state_dict(unflatten(saved["optimizer"], load_file(path / OPTIMIZER)))
    if state.scaler is not None and saved["scaler"] is not None:
        state.scaler.load_state_dict(saved["scaler"])
    if state.stream is not None:
        state.stream.restore(saved["streams"][process])
    state.best = Best(**saved["best"])
    state.step = saved["step"]


def read_fingerprint(path: Path) -> dict[str, Any]:
    """What the run of a checkpoint was. Raises `ModelError` for a damaged one."""
    damage = fault(path)
    if damage is not None:
        raise ModelError(f"the checkpoint {path} cannot be used: {damage}")
    return json.loads((path / "state.json").read_text(encoding="utf-8"))["fingerprint"]


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, among those of a run."""
    return folder / f"{PREFIX}{step:08d}"


def find(folder: Path, which: str) -> Path:
    """The checkpoint meant by "latest" (the newest valid one; invalid ones are named) or a path.
    Raises `ModelError`.
    """
    if which != "latest":
        return Path(which)
    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        damage = fault(path)
        if damage is None:
            return path
        print(f"{path} is passed over: {damage}")
    raise ModelError(
        f"resume_from_checkpoint latest: {folder} holds no valid checkpoint ({len(checkpoints)} "
        "damaged). To start anew, leave resume_from_checkpoint out and choose another name or "
        "output_dir."
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest step first, valid or not."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: its files must be those of the manifest."""
    try:
        expected = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found = manifest(path)
    except (OSError, ValueError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    if not isinstance(expected, dict):
        return f"its {MANIFEST} is not a list of files"
    differing = [
        name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)
    ]
    return f"changed or missing: {', '.join(differing)}" if differing else None


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in the folder but the manifest itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): _checksum(path) for path in files}


def _describe(
    state: TrainingState, artifact: str, optimizer: Any, streams: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "step": state.step,
        "artifact": artifact,
        "fingerprint": state.fingerprint,
        "best": asdict(state.best),
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
        "optimizer": optimizer,
        "streams": list(streams),
        "versions": {"hn": __version__, "torch": str(torch.__version__)},
    }


def check_fingerprint(saved: dict[str, Any], current: dict[str, Any], path: Path) -> None:
    """Raises `OptionError` naming what differs from the run that a checkpoint is of."""
    current = json.loads(json.dumps(current))  # tuples are lists in the file
    differing = [key for key in sorted({*saved, *current}) if saved.get(key) != current.get(key)]
    if differing:
        lines = [f"  {key}: {saved.get(key)!r} then, {current.get(key)!r} now" for key in differing]
        raise OptionError(
            f"{path} is of another run; set these back, or start a new one under another name:\n"
            + "\n".join(lines)
        )


def _checksum(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _write_json(path: Path, content: Any) -> None:
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
