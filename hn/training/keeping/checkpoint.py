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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from hn import __version__
from hn.errors import ModelError, NumericsError, OptionError, StorageError
from hn.limits.saving import CHANGEABLE
from hn.network.files import load as load_hypernetwork
from hn.storage import sync_folder, write_bytes
from hn.training.keeping import artifacts
from hn.training.keeping.best import LINK, Best
from hn.training.keeping.trees import flatten, unflatten
from hn.training.state import TrainingState
from hn.training.watching.health import Health

PREFIX = "step-"
MANIFEST = "MANIFEST.json"
_HALF, _ASIDE = ".tmp-", ".del-"  # before the name of what is written, or to be removed
OPTIMIZER = "resume/optimizer.safetensors"
AVERAGES = "resume/averages.safetensors"


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
    temporary = path.with_name(f"{_HALF}{path.name}-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        stem = f"{name}-{state.step}"  # of its own: the web UI remembers files by the name inside
        write_artifacts(state, temporary / stem, optimizer_name)
        description, tensors = flatten(state.optimizer.state_dict())
        write_bytes(temporary / OPTIMIZER, save(tensors))
        if averages := state.averages.tensors():
            write_bytes(temporary / AVERAGES, save(averages))
        described = _describe(state, stem, description, streams)
        write_bytes(temporary / "state.json", _as_json(described))
        write_bytes(temporary / MANIFEST, _as_json(manifest(temporary)))
        sync_folder(temporary)
        # Left by a run that went on from an earlier step; nothing of it goes before its successor.
        before = set_aside(path) if path.exists() else None
        os.replace(temporary, path)
        sync_folder(path.parent)
        if before is not None:
            shutil.rmtree(before)
    except (OSError, StorageError) as error:
        raise StorageError(
            f"cannot save the checkpoint {path}: {error} Older checkpoints are intact. "
            f"{room(path.parent)}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    damage = fault(path)
    if damage is not None:
        raise StorageError(
            f"the checkpoint {path} reads back differently ({damage}): is the disk failing?"
        )


def room(folder: Path) -> str:
    """How much a checkpoint takes, and how much there is."""
    saved = list_checkpoints(folder)
    size = sum(path.stat().st_size for path in saved[-1].rglob("*")) if saved else 0
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / 2**20
    taken = f", {saved[-1].name} takes {size / 2**20:.1f} MiB" if saved else ""
    return f"{free:.1f} MiB are free there{taken}."


def write_artifacts(state: TrainingState, stem: Path, optimizer_name: str | None) -> None:
    """The hypernetwork and its averages; the optimizer's state lies beside the first alone.

    Raises `NumericsError` for weights that are not finite.
    """
    optimizer_state = state.optimizer.state_dict()
    for view in state.averages:
        with view.applied():
            _check_finite(state, view.tail)
            artifacts.write(
                state.hypernetwork,
                stem.with_name(f"{stem.name}{view.tail}"),
                None if view.name else optimizer_name,
                optimizer_state,
            )


def _check_finite(state: TrainingState, tail: str) -> None:
    for name, weight in state.hypernetwork.state_dict().items():
        if not bool(weight.isfinite().all()):
            raise NumericsError(
                f"step {state.step}: {name} of {state.hypernetwork.provenance.name}{tail} is not "
                "finite, so nothing is written; what was saved before is intact. Go on from there "
                "with a lower learning_rate, or with mixed_precision bf16 or no."
            )


def set_aside(path: Path) -> Path:
    """Rename a checkpoint that is to go, so that none is ever half gone; returns its new name."""
    doomed = path.with_name(f"{_ASIDE}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    return doomed


def restore(path: Path, state: TrainingState, process: int = 0) -> list[str]:
    """Load the checkpoint; of the streams, that of this process. Returns what differs, and may.

    Raises `ModelError` (damaged) or `OptionError` (another run).
    """
    damage = fault(path)
    if damage is not None:
        raise ModelError(f"the checkpoint {path} cannot be used: {damage}")
    saved = json.loads((path / "state.json").read_text(encoding="utf-8"))
    differing = check_fingerprint(saved["fingerprint"], state.fingerprint, path, state.may_differ)
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
    state.health = Health(**saved.get("health", {}))  # of older versions: none
    state.step = saved["step"]
    return differing


def read_fingerprint(path: Path) -> dict[str, Any]:
    """What the run of a checkpoint was. Raises `ModelError` for a damaged one."""
    damage = fault(path)
    if damage is not None:
        raise ModelError(f"the checkpoint {path} cannot be used: {damage}")
    return json.loads((path / "state.json").read_text(encoding="utf-8"))["fingerprint"]


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, among those of a run."""
    return folder / f"{PREFIX}{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix(PREFIX))


def find(folder: Path, which: str) -> tuple[Path, dict[str, str]]:
    """The checkpoint meant by "latest" (the newest valid one) or a path; and those passed over,
    with what is wrong with them. Raises `ModelError`.
    """
    if which != "latest":
        return Path(which), {}
    rejected = {}
    for path in reversed(list_checkpoints(folder)):
        damage = fault(path)
        if damage is None:
            return path, rejected
        rejected[path.name] = damage
    faults = "".join(f"\n  {name}: {damage}" for name, damage in rejected.items())
    raise ModelError(
        f"resume_from_checkpoint latest: {folder} holds no valid checkpoint ({len(rejected)} "
        "damaged). To start anew, leave resume_from_checkpoint out"
        f"{' and choose another name or output_dir' if rejected else ''}.{faults}"
    )


def tidy(folder: Path) -> None:
    """Finish what a crash interrupted: what was half written or half removed goes; what was set
    aside whole, and whose successor is not there, comes back.
    """
    for aside in folder.glob(f"{_ASIDE}{PREFIX}*"):
        home = folder / aside.name.removeprefix(_ASIDE)
        if not home.exists() and fault(aside) is None:
            os.replace(aside, home)
        else:
            shutil.rmtree(aside)
    for half in folder.glob(f"{_HALF}{PREFIX}*"):
        shutil.rmtree(half)
    for half in folder.glob(f".{LINK}.*.tmp"):
        half.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest step first, valid or not."""
    found = (path for path in folder.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdecimal())
    return sorted(path for path in found if path.is_dir())


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: its files must be those of the manifest, which must
    be as we write it, to the byte.
    """
    try:
        content = (path / MANIFEST).read_bytes()
        expected, found = json.loads(content), manifest(path)
    except (OSError, ValueError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    if content == _as_json(found):
        return None
    names = {*expected, *found} if isinstance(expected, dict) else set()
    differing = [name for name in sorted(names) if expected.get(name) != found.get(name)]
    return f"changed or missing: {', '.join(differing) or MANIFEST}"


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
        "health": asdict(state.health),
        "scaler": None if state.scaler is None else state.scaler.state_dict(),
        "optimizer": optimizer,
        "streams": list(streams),
        "versions": {"hn": __version__, "torch": str(torch.__version__)},
    }


def check_fingerprint(
    saved: dict[str, Any], current: dict[str, Any], path: Path, may_differ: tuple[str, ...]
) -> list[str]:
    """What differs between the checkpoint's run and this one, and may. Raises `OptionError`."""
    current = json.loads(json.dumps(current))  # tuples are lists in the file
    lines = {
        key: f"  {key}: {saved.get(key)!r} then, {current.get(key)!r} now"
        for key in sorted({*saved, *current})
        if saved.get(key) != current.get(key)
    }
    refused = [line for key, line in lines.items() if key not in may_differ]
    if refused:
        changeable = [key for key in lines if key in CHANGEABLE and key not in may_differ]
        remedy = f"; or allow it: --allow_change {' '.join(changeable)}" if changeable else ""
        raise OptionError(
            f"{path} is of another run; set these back, or start a new one under another name"
            f"{remedy}:\n" + "\n".join(refused)
        )
    return list(lines.values())


def _checksum(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
