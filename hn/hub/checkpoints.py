"""Checkpoints in a model repository: which are there, brought there, and fetched to go on from."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.hf_api import RepoFile

from hn.errors import ModelError, OptionError, UserError, shown
from hn.hub_access import said
from hn.hub_copies import Address, fetch
from hn.training.keeping.checkpoint import MANIFEST, PREFIX, fault, list_checkpoints

REMOTE = "hub:"  # how a setting says that a checkpoint lies in a repository
ENDINGS = (".safetensors", ".pt")
_PATH = re.compile(rf"checkpoints/{PREFIX}(\d{{8,15}})/.+")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run, by what its manifest says of its files."""

    folder: Path
    step: int
    manifest: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint | None":
        """The checkpoint in this folder; None for one that is not whole, or gone meanwhile."""
        try:
            manifest = cls.read_manifest(folder)
            return cls(folder, int(folder.name.removeprefix(PREFIX)), manifest)
        except (OSError, ValueError, TypeError):
            return None

    @staticmethod
    def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
        """Its files. Raises `OSError`, `ValueError` or `TypeError`."""
        return dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))

    def files(self, *, whole: bool) -> dict[str, str]:
        """Its files by path in the repository: those that users share, or all of them."""
        names = [*self.manifest, MANIFEST] if whole else self.artifacts
        return {f"{checkpoint_path(self.step)}/{name}": name for name in names}

    @property
    def artifacts(self) -> list[str]:
        """The names of what users share, our own kind first."""
        names = [name for name in self.manifest if name.endswith(ENDINGS) and "/" not in name]
        return sorted(names, key=lambda name: (name.endswith(".pt"), name))

    def is_in(self, there: Mapping[str, RepoFile], *, whole: bool) -> bool:
        """Whether the repository has it already, by the checksums of its files."""
        files = self.files(whole=whole)
        return all(self._is_same(there.get(path), name) for path, name in files.items())

    def hold(self, scratch: Path) -> Path | None:
        """The same files in `scratch`, where no rotation takes them away while they are uploaded.

        None, and a line that says so, for a damaged one; None for one that is gone meanwhile.
        """
        held = scratch / self.folder.name
        try:
            shutil.copytree(self.folder, held, copy_function=_link)
        except (OSError, shutil.Error):
            if self.folder.exists():
                raise
            return None
        damage = fault(held)
        if damage is not None:
            print(f"{self.folder} is not pushed: {damage}")
            return None
        return held

    def _is_same(self, entry: RepoFile | None, name: str) -> bool:
        if entry is None:
            return False
        if entry.lfs is not None:
            return entry.lfs.sha256 == self.manifest.get(name, {}).get("sha256")
        content = (self.folder / name).read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return entry.blob_id == blob.hexdigest()  # as git names it


def checkpoint_path(step: int) -> str:
    """Where a checkpoint lies, in the run's folder and in the repository."""
    return f"checkpoints/{PREFIX}{step:08d}"


def checkpoints_of(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, by step, but for those that are not whole."""
    read = map(Checkpoint.read, list_checkpoints(run / "checkpoints"))
    return [it for it in read if it is not None]


def steps_in(paths: Iterable[str]) -> dict[str, int]:
    """Those of a repository's paths that belong to checkpoints, and the step of each."""
    found = {path: _PATH.fullmatch(path) for path in paths}
    return {path: int(match[1]) for path, match in found.items() if match is not None}


def fetch_checkpoint(which: str) -> Path:
    """The checkpoint meant by `hub:owner/name[@revision][/step-00000500]`, as a folder; without a
    step the newest that was pushed whole. It holds what its manifest says and no pickle is read of
    it.

    Raises `OptionError` (no such form), `HubError` (not there, not allowed, not reached),
    `ModelError` (no whole checkpoint, or a damaged one).
    """
    address = Address.parse(which.removeprefix(REMOTE))
    try:
        if address is None:
            raise OptionError(
                "it must be hub:owner/name, perhaps with @revision and /step-00000500"
            )
        return _fetched(address)
    except UserError as error:
        raise type(error)(f"resume_from_checkpoint {shown(which)}: {error}") from error


def _fetched(address: Address) -> Path:
    manifests = fetch(address.repo_id, [f"checkpoints/*/{MANIFEST}"], revision=address.revision)
    whole = list_checkpoints(manifests / "checkpoints")
    path = (
        whole[-1] if whole and address.path is None else manifests / f"checkpoints/{address.path}"
    )
    if path not in whole:
        raise ModelError(
            f"{address.repo_id} has no such checkpoint with what resuming needs, as hub_strategy "
            f"all pushes it; it has {', '.join(it.name for it in whole) or 'none'}"
        )
    name = f"checkpoints/{path.name}"
    folder = fetch(address.repo_id, [f"{name}/*"], revision=manifests.name) / name
    damage = fault(folder)
    if damage is not None:
        raise ModelError(f"{name} of {address.repo_id} cannot be used: {damage}")
    _check_state(folder)
    return folder


def _check_state(folder: Path) -> None:
    """Refuse a state that somebody else wrote in another form. Raises `ModelError`."""
    kinds = {"step": int, "artifact": str, "fingerprint": dict, "optimizer": dict, "streams": list}
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        wrong = [name for name, kind in kinds.items() if not isinstance(state[name], kind)]
        if f"{state['artifact']}.safetensors" not in Checkpoint.read_manifest(folder):
            wrong.append("artifact")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{folder.name}/state.json is not as we write it: {said(error)}"
        ) from error
    wrong += [name for name in ("scaler",) if name not in state]
    if wrong:
        raise ModelError(f"{folder.name}/state.json is not as we write it: {', '.join(wrong)}")


def _link(source: str, target: str) -> None:
    """The same file under a second name; where the disk knows no such thing, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
