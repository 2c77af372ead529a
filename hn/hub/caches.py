"""A cache of encoded pictures as a dataset repository of the Hugging Face Hub.

    tensors/*.arrow              entries, by key
    pictures/train.arrow         one row for each picture
    pictures/validation.arrow    the same, of the held-out pictures, if there are any
    README.md                    the card, see `hn.hub.card`

Pushing makes the repository the same as the folder, in one commit: a reader sees all of it or
nothing, and the revisions before stay readable. What the hub has already is not uploaded again,
nor is what a stopped push brought there.
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from hn.errors import DataError, HubError, OptionError
from hn.hub.card import read_contents, write_card
from hn.hub.selection import select
from hn.hub_access import check_repo_id, check_token, remedied, remedy

PICTURES = "pictures/train.arrow"
CARD = "README.md"
FETCHED = ["tensors/*.arrow", "pictures/train.arrow", "pictures/validation.arrow"]
_OURS = re.compile(r"tensors/[^/.][^/]*\.arrow|pictures/(train|validation)\.arrow")


def check_destination(repo_id: str, token: str | None = None) -> None:
    """Refuse what cannot be pushed to before anything is done.

    Raises `OptionError` for what is no id of a repository, `HubError` without a token.
    """
    check_repo_id(repo_id)
    check_token(token)


def push_cache(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Make the dataset repository `repo_id` what the cache folder is; returns its address.

    Private unless said otherwise: latents turn back into the pictures. `revision` is a branch,
    which is made where it is missing. Only the cache's own files go, of its tensors those of its
    pictures (`hn.hub.selection`), and a card that is written anew every time.

    Raises `OptionError` (no id of a repository; another visibility), `DataError` (no cache, or a
    damaged one), `HubError` (no token, no right, no network, other files there).
    """
    check_destination(repo_id, token)
    files = cache_files(folder)
    with (
        remedied(f"{folder} cannot be pushed to {repo_id}"),
        TemporaryDirectory(dir=folder, prefix=".push-") as scratch,
    ):
        selection = select(files, Path(scratch))
        if selection.left_out:
            print(f"left out: {selection.left_out} entries that belong to no picture of {folder}")
        return _push(HfApi(token=token), repo_id, selection.files, private, revision)


def fetch_cache(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The cache in this dataset repository, as a folder; downloads what is missing.

    Without a connection it is the copy that was fetched before, and a line says so. The folder is
    the hub cache's own: read it, do not write there. Raises `OptionError` (no id of a repository),
    `DataError` (the repository is no cache), `HubError` (not there, not allowed, not reached).
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    act = f"{repo_id} cannot be fetched"
    with remedied(act):
        try:
            api.repo_info(repo_id, repo_type="dataset", revision=revision)
        except RevisionNotFoundError:
            raise
        except (HTTPError, OfflineModeIsEnabled) as error:
            folder = _copy_from_before(api, repo_id, revision, act, error)
        else:
            folder = _download(api, repo_id, revision)
    if not (folder / PICTURES).is_file():
        raise DataError(f"{repo_id} is not a cache of encoded pictures: it has no {PICTURES}")
    return folder


def cache_files(folder: Path) -> dict[str, Path]:
    """The files of a cache, by path in the repository: nothing hidden, nothing half-written.

    Raises `DataError` where there is no cache.
    """
    found = {
        path.relative_to(folder).as_posix(): path
        for part in ("pictures", "tensors")
        for path in sorted((folder / part).glob("*.arrow"))
        if path.is_file()
    }
    files = {name: path for name, path in found.items() if _OURS.fullmatch(name)}
    tensors = any(name.startswith("tensors/") for name in files)
    if PICTURES not in files or not tensors:
        raise DataError(
            f"{folder} is not a cache of encoded pictures: it has no "
            f"{'tensors/*.arrow' if PICTURES in files else PICTURES}. Make one with "
            "tools/cache_latents.py, or by training with latent_cache_dir."
        )
    return files


def _push(
    api: HfApi, repo_id: str, files: dict[str, Path], private: bool, revision: str | None
) -> str:
    contents = read_contents(files)
    card = write_card(repo_id, contents)
    url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    _check_visibility(api, repo_id, private)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
    there = _files_there(api, repo_id, revision)
    operations = [
        *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
        CommitOperationAdd(CARD, card.encode()),
        *map(CommitOperationDelete, sorted(there - files.keys() - {CARD})),
    ]
    api.create_commit(
        repo_id,
        operations,
        commit_message=f"Push {sum(contents.pictures.values())} pictures and "
        f"{contents.entries.total()} entries",
        repo_type="dataset",
        revision=revision,
    )
    return str(url) if revision is None else f"{url}/tree/{revision}"


def _download(
    api: HfApi, repo_id: str, revision: str | None, *, local_files_only: bool = False
) -> Path:
    return Path(
        api.snapshot_download(
            repo_id,
            repo_type="dataset",
            revision=revision,
            allow_patterns=FETCHED,
            local_files_only=local_files_only,
        )
    )


def _copy_from_before(
    api: HfApi, repo_id: str, revision: str | None, act: str, error: Exception
) -> Path:
    """What was fetched before, whole; otherwise `HubError` with the reason why it is needed."""
    try:
        folder = _download(api, repo_id, revision, local_files_only=True)
    except LocalEntryNotFoundError:
        raise HubError(f"{act}: {remedy(error)}") from error
    print(
        f"{repo_id}: taken as it was fetched before (commit {folder.name[:8]}), since "
        f"{remedy(error)}",
        file=sys.stderr,
    )
    return folder


def _check_visibility(api: HfApi, repo_id: str, private: bool) -> None:
    """Never put private pictures into a public repository. Raises `OptionError`."""
    if bool(api.repo_info(repo_id, repo_type="dataset").private) == private:
        return
    now, wanted = ("public", "private") if private else ("private", "public")
    raise OptionError(
        f"{repo_id} is {now} and was to be {wanted}: nothing was uploaded. Change it on the "
        "repository's settings page, push with the other visibility, or choose another id."
    )


def _files_there(api: HfApi, repo_id: str, revision: str | None) -> set[str]:
    """The cache's files in the repository. Raises `HubError` if there are others."""
    tree = api.list_repo_tree(repo_id, repo_type="dataset", revision=revision, recursive=True)
    paths = {entry.path for entry in tree if isinstance(entry, RepoFile)} - {".gitattributes"}
    others = sorted(path for path in paths - {CARD} if not _OURS.fullmatch(path))
    if others:
        raise HubError(
            f"{repo_id} holds {len(others)} files that are not of a cache, the first is "
            f"{others[0]!r}: nothing was uploaded. Choose another id."
        )
    return paths
