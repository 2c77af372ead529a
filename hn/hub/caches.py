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
from pathlib import Path
from tempfile import TemporaryDirectory

from hn.errors import DataError, HubError
from hn.hub.card import read_contents, write_card
from hn.hub.repository import CARD, Repository, check_destination
from hn.hub.selection import select
from hn.hub_access import remedied
from hn.hub_copies import fetch

PICTURES = "pictures/train.arrow"
FETCHED = ["tensors/*.arrow", "pictures/train.arrow", "pictures/validation.arrow"]
_OURS = re.compile(r"tensors/[^/.][^/]*\.arrow|pictures/(train|validation)\.arrow")


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
        repository = Repository(repo_id, "dataset", branch=revision, token=token)
        return _push(repository, selection.files, private)


def fetch_cache(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The cache in this dataset repository, as a folder; downloads what is missing.

    Without a connection it is the copy that was fetched before, and a line says so. The folder is
    the hub cache's own: read it, do not write there. Raises `OptionError` (no id of a repository),
    `DataError` (the repository is no cache), `HubError` (not there, not allowed, not reached).
    """
    folder = fetch(repo_id, FETCHED, repo_type="dataset", revision=revision, token=token)
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


def _push(repository: Repository, files: dict[str, Path], private: bool) -> str:
    contents = read_contents(files)
    card = write_card(repository.repo_id, contents)
    url = repository.create(private=private)
    there = _files_there(repository)
    repository.commit(
        {**files, CARD: card.encode()},
        there - files.keys() - {CARD},
        f"Push {sum(contents.pictures.values())} pictures and {contents.entries.total()} entries",
    )
    return url


def _files_there(repository: Repository) -> set[str]:
    """The cache's files in the repository. Raises `HubError` if there are others."""
    paths = set(repository.files())
    others = sorted(path for path in paths - {CARD} if not _OURS.fullmatch(path))
    if others:
        raise HubError(
            f"{repository.repo_id} holds {len(others)} files that are not of a cache, the first is "
            f"{others[0]!r}: nothing was uploaded. Choose another id."
        )
    return paths
