"""A repository of the Hugging Face Hub that is written to: the one way in which anything is pushed.

What the hub has already is not uploaded again, nor is what a stopped push brought there.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from hn.errors import HubError, OptionError
from hn.hub_access import check_repo_id, check_token

CARD = "README.md"


def check_destination(repo_id: str, token: str | None = None) -> None:
    """Refuse what cannot be pushed to before anything is done.

    Raises `OptionError` for what is no id of a repository, `HubError` without a token.
    """
    check_repo_id(repo_id)
    check_token(token)


class Repository:
    """A model or dataset repository, and the branch of it that is written to.

    What the hub's library raises is for the caller to explain (`hn.hub_access.remedied`).
    """

    def __init__(
        self,
        repo_id: str,
        kind: Literal["model", "dataset"],
        *,
        branch: str | None = None,
        token: str | None = None,
    ) -> None:
        self.repo_id = repo_id
        self._api = HfApi(token=token)
        self._kind = kind
        self._branch = branch

    def create(self, *, private: bool) -> str:
        """Make it where it is missing; returns its address. Raises `OptionError` if others see it
        than were to.
        """
        made = self._api.create_repo(
            self.repo_id, repo_type=self._kind, private=private, exist_ok=True
        )
        self._check_visibility(private)
        if self._branch is None:
            return str(made)
        self._api.create_branch(
            self.repo_id, branch=self._branch, repo_type=self._kind, exist_ok=True
        )
        return f"{made}/tree/{self._branch}"

    def check_writable(self) -> None:
        """Ask whether this token may write there: `create` does not tell of one that exists."""
        self._api.auth_check(self.repo_id, repo_type=self._kind, write=True)

    def files(self) -> dict[str, RepoFile]:
        """What is there, by path, but for the hub's own `.gitattributes`."""
        tree = self._api.list_repo_tree(
            self.repo_id, repo_type=self._kind, revision=self._branch, recursive=True
        )
        found = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        found.pop(".gitattributes", None)
        return found

    def card(self) -> str:
        """The text of the card that is there."""
        path = self._api.hf_hub_download(
            self.repo_id, CARD, repo_type=self._kind, revision=self._branch
        )
        return Path(path).read_text(encoding="utf-8")

    def commit(
        self,
        files: Mapping[str, Path | bytes],
        removed: Iterable[str],
        message: str,
        *,
        stopped: Callable[[], bool] | None = None,
    ) -> None:
        """Add and remove files, all in one commit.

        With `stopped`, large files go up one after the other, in this thread only, and between two
        of them it is asked whether to leave; raises `HubError` then.
        """
        added = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        large = [it for it in added if not isinstance(it.path_or_fileobj, bytes)]
        for addition in large if stopped is not None else ():
            if stopped is not None and stopped():
                raise HubError(f"the upload to {self.repo_id} was broken off")
            self._api.preupload_lfs_files(
                self.repo_id,
                [addition],
                repo_type=self._kind,
                revision=self._branch,
                free_memory=False,
            )
        self._api.create_commit(
            self.repo_id,
            [*added, *map(CommitOperationDelete, sorted(removed))],
            commit_message=message,
            repo_type=self._kind,
            revision=self._branch,
        )

    def _check_visibility(self, private: bool) -> None:
        """Never put what is private into a public repository. Raises `OptionError`."""
        if bool(self._api.repo_info(self.repo_id, repo_type=self._kind).private) == private:
            return
        now, wanted = ("public", "private") if private else ("private", "public")
        raise OptionError(
            f"{self.repo_id} is {now} and was to be {wanted}: nothing was uploaded. Change it on "
            "the repository's settings page, push with the other visibility, or choose another id."
        )
