"""A hypernetwork in a repository of the Hugging Face Hub, as a file here."""

import glob
import os
import re
from os import PathLike
from pathlib import Path

from hn.errors import ModelError, OptionError, UserError, shown

CARD = "README.md"
NAMED = "hypernetwork"  # the key of the card that names the file
MAX_CARD = 2**20  # bytes
_ENDINGS = (".safetensors", ".pt")


def locate(name: str | PathLike[str], revision: str | None = None) -> Path:
    """The file that `name` means: the one here, or, if there is none, that of a repository.

    A repository is `owner/name[@revision]`, perhaps with a `/file` after it; without one, it is
    the file its card names, or the only one there is. What is no repository's name is returned as
    it is. Raises `OptionError`, `ModelError` or `HubError` of a repository.
    """
    path = Path(name)
    if os.path.lexists(path) or not _may_be_remote(path):
        if revision is not None:
            raise OptionError(f"revision {shown(revision)} is of a repository, but {path} is none")
        return path
    try:
        return _fetched(str(name), revision)
    except UserError as error:
        raise type(error)(f"{path} is no file here, and as a repository: {error}") from error


def _may_be_remote(path: Path) -> bool:
    """Whether it has the form of a repository's name, and not that of a file in a folder here."""
    from hn.hub_copies import Address

    address = Address.parse(str(path))
    if address is None:
        return False
    if address.path is None:
        return path.suffix not in _ENDINGS
    return address.path.endswith(_ENDINGS) and not path.parent.exists()


def _fetched(name: str, revision: str | None) -> Path:
    from hn.hub_copies import Address, fetch

    address = Address.parse(name)
    assert address is not None
    revision = revision or address.revision
    folder = fetch(address.repo_id, [CARD], revision=revision)
    file = address.path or _named_by(folder / CARD) or _only_one(address.repo_id, folder.name)
    if not (folder / file).is_file():
        folder = fetch(address.repo_id, [glob.escape(file)], revision=folder.name)
    if not (folder / file).is_file():
        raise ModelError(f"{address.repo_id} has no file {shown(file)}")
    return folder / file


def _named_by(card: Path) -> str | None:
    """The file that a card names, if it does."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    if not card.is_file() or card.stat().st_size > MAX_CARD:
        return None
    try:
        named = ModelCard.load(card).data.get(NAMED)
    except (ValueError, TypeError, OSError, YAMLError, RecursionError) as error:
        raise ModelError(f"its card cannot be read: {shown(str(error))}") from error
    if named is None:
        return None
    if not isinstance(named, str) or not re.fullmatch(r"[^/\\][^\\]*\.(safetensors|pt)", named):
        raise ModelError(f"its card names {shown(named)} as the hypernetwork, which is no file")
    if ".." in Path(named).parts:
        raise ModelError(f"its card names {shown(named)} as the hypernetwork, outside of it")
    return named


def _only_one(repo_id: str, commit: str) -> str:
    """The only hypernetwork in the repository's first folder, our own kind before others."""
    from huggingface_hub import HfApi

    from hn.hub_access import remedied

    with remedied(f"{repo_id} cannot be listed"):
        files = HfApi().list_repo_files(repo_id, revision=commit)
    for ending in _ENDINGS:
        found = sorted(file for file in files if file.endswith(ending) and "/" not in file)
        if len(found) == 1:
            return found[0]
        if found:
            raise ModelError(
                f"{repo_id} has {len(found)} hypernetworks: name one, such as {repo_id}/{found[0]}"
            )
    raise ModelError(f"{repo_id} has no .safetensors and no .pt in its first folder")
