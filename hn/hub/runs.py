"""A run as a model repository of the Hugging Face Hub.

    <name>.safetensors, <name>.pt    the finished hypernetwork
    checkpoints/step-00000500/       <name>-500.safetensors and .pt; with hub_strategy all the
                                     whole checkpoint, and its manifest
    preview.png, config.toml         the last grid; the settings, but for what names places here
    README.md                        the card, see `hn.hub.run_card`

What is there stays, and what is the same is not uploaded again: so a push may be broken off, and
done again. Of what is there only checkpoints of steps that the run has not reached are removed, for
another run left them; files that are not ours are left alone.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from hn import cli
from hn.config import Config, HubConfig
from hn.errors import HubError, OptionError
from hn.hub.checkpoints import ENDINGS, Checkpoint, checkpoint_path, checkpoints_of, steps_in
from hn.hub.public import public_settings
from hn.hub.repository import CARD, Repository, check_destination
from hn.hub.run_card import MARK, PREVIEW, Subject, write_run_card
from hn.hub_access import remedied

SCRATCH = ".push"  # in the run's folder: what is being uploaded, even if it is rotated away
_RECIPE = "# The settings it was trained with, but for what names places on one machine.\n\n"
_Stopped = Callable[[], bool]


def check_run_destination(hub: HubConfig, token: str | None = None) -> str:
    """Make the repository where it is missing and prove that it may be written to, before a run.

    Returns its address. Raises `OptionError` (no id; another visibility), `HubError` (no token, no
    right, no network, a card that is not ours).
    """
    repository = _repository(hub, token)
    with remedied(f"push_to_hub to {repository.repo_id} cannot work"):
        url = repository.create(private=not hub.hub_public)
        repository.check_writable()
        _check_card(repository, repository.files())
    return url


def push_run(
    folder: Path,
    hub: HubConfig,
    *,
    stopped: _Stopped = lambda: False,
    token: str | None = None,
) -> str:
    """Publish what the run in `folder` has by now; returns the repository's address.

    Each checkpoint is a commit of its own, what else there is another. `stopped` is asked between
    large files. Raises `OptionError` (no id; another visibility; no run), `HubError` (no token, no
    right, no network, a card that is not ours; another process pushes this run; nothing to push).
    """
    config = replace(read_settings(folder), hub=hub)
    repository = _repository(hub, token)
    with _scratch(folder) as scratch, remedied(f"{folder} cannot be pushed to {hub.hub_model_id}"):
        finished = {it.name: it for end in ENDINGS for it in sorted(folder.glob(f"*{end}"))}
        checkpoints = checkpoints_of(folder)
        if not finished and not checkpoints:
            raise HubError(f"{folder} has nothing to push: no finished hypernetwork, no checkpoint")
        url = repository.create(private=not hub.hub_public)
        there = repository.files()
        _check_card(repository, there)
        removed = _beyond(there, checkpoints)
        if hub.hub_strategy == "end":
            checkpoints = [] if finished else checkpoints[-1:]
        pushed = [
            it
            for it in checkpoints
            if _push_checkpoint(it, repository, there, hub, scratch, stopped)
        ]
        about = _about(folder, config, finished, pushed, there.keys() - removed)
        files = {**finished, **about}
        message = "The finished hypernetwork" if finished else "What is known by now"
        repository.commit(files, removed, message, stopped=stopped)
    return url


def read_settings(folder: Path) -> Config:
    """The settings of the run in `folder`. Raises `OptionError` if there is none."""
    path = folder / "config.toml"
    if not path.is_file():
        raise OptionError(
            f"{folder} is not the folder of a run: it has no config.toml. Give one such as "
            "runs/my_style."
        )
    return cli.read_toml(path)


def _repository(hub: HubConfig, token: str | None) -> Repository:
    """Raises `OptionError` for what is no id, `HubError` without a token."""
    if hub.hub_model_id is None:
        raise OptionError("hub_model_id is missing: give the repository, such as me/my_style")
    check_destination(hub.hub_model_id, token)
    return Repository(hub.hub_model_id, "model", token=token)


def _check_card(repository: Repository, there: Mapping[str, RepoFile]) -> None:
    """Leave a card alone that somebody else wrote. Raises `HubError`."""
    if CARD not in there:
        return
    text = repository.card()
    found = re.match(r"---\n(.*?)\n---(?:\n|$)", text, re.DOTALL)
    front, body = (found[1], text[found.end() :]) if found else ("", text)
    if body.strip() and f"- {MARK}\n" not in f"{front}\n":
        raise HubError(
            f"{repository.repo_id} has a card that is not of a hypernetwork: nothing was uploaded. "
            "Choose another id."
        )


def _push_checkpoint(
    checkpoint: Checkpoint,
    repository: Repository,
    there: Mapping[str, RepoFile],
    hub: HubConfig,
    scratch: Path,
    stopped: _Stopped,
) -> bool:
    """Bring a checkpoint there, unless it is; False if it is damaged or gone."""
    whole = hub.hub_strategy == "all"
    if checkpoint.is_in(there, whole=whole):
        return True
    held = checkpoint.hold(scratch)
    if held is None:
        return False
    files = {path: held / name for path, name in checkpoint.files(whole=whole).items()}
    repository.commit(files, [], f"Step {checkpoint.step}", stopped=stopped)
    return True


def _beyond(there: Mapping[str, RepoFile], checkpoints: list[Checkpoint]) -> set[str]:
    """Paths of checkpoints of steps that this run has not reached."""
    if not checkpoints:
        return set()
    return {path for path, step in steps_in(there).items() if step > checkpoints[-1].step}


def _about(
    folder: Path,
    config: Config,
    finished: Mapping[str, Path],
    pushed: list[Checkpoint],
    kept: set[str],
) -> dict[str, Path | bytes]:
    """Card, picture and settings. Raises `HubError` if every checkpoint turned out damaged."""
    files: dict[str, Path | bytes] = {}
    grids = sorted((folder / "previews").glob("step-*.png"))
    if grids:
        files[PREVIEW] = grids[-1].read_bytes()
    main = f"{config.network.name}.safetensors"
    if finished:
        artifact, file = (
            (main, finished[main]) if main in finished else next(iter(finished.items()))
        )
    elif pushed:
        name = pushed[-1].artifacts[0]
        artifact = f"{checkpoint_path(pushed[-1].step)}/{name}"
        file = pushed[-1].folder / name
    else:
        raise HubError(f"{folder} has nothing to push: no checkpoint of it is whole")
    steps = sorted({*steps_in(kept).values(), *(it.step for it in pushed)})
    assert config.hub.hub_model_id is not None
    subject = Subject(folder, config, config.hub.hub_model_id, artifact, file, steps, bool(grids))
    settings = cli.to_toml(public_settings(replace(config, hub=HubConfig())), without=Config())
    return files | {
        "config.toml": (_RECIPE + settings).encode(),
        CARD: write_run_card(subject).encode(),
    }


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder in the run's folder, for one pusher at a time; removed afterwards.

    Raises `HubError` for a second one.
    """
    scratch = folder / SCRATCH
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when it is closed
        shutil.rmtree(scratch, ignore_errors=True)  # left by one that was killed
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except BlockingIOError as error:
        raise HubError(f"{folder} is being pushed by another process: wait for it") from error
    finally:
        os.close(descriptor)
