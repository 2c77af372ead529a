"""Copies of what lies in repositories of the Hugging Face Hub: fetched once, found again without a
connection.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from hn.errors import HubError
from hn.hub_access import check_repo_id, remedied, remedy

_ADDRESS = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?")


@dataclass(frozen=True)
class Address:
    """A repository, perhaps one of its revisions, perhaps a file or folder in it."""

    repo_id: str
    revision: str | None = None
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Address | None":
        """Read `owner/name[@revision][/path]`; None for what cannot be one."""
        found = _ADDRESS.fullmatch(text)
        return None if found is None else cls(*found.groups())


def fetch(
    repo_id: str,
    patterns: list[str],
    *,
    repo_type: str = "model",
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """The files of a repository that fit one of the patterns, as a folder named by their commit.

    Downloads what is missing. Without a connection it is the copy that was fetched before, and a
    line says so. The folder is the hub cache's own: read it, do not write there. Raises
    `OptionError` (no id of a repository), `HubError` (not there, not allowed, not reached).
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    act = f"{repo_id} cannot be fetched"

    def download(*, local_files_only: bool = False) -> Path:
        folder = api.snapshot_download(
            repo_id,
            repo_type=repo_type,
            revision=revision,
            allow_patterns=patterns,
            local_files_only=local_files_only,
        )
        return Path(folder)

    with remedied(act):
        try:
            api.repo_info(repo_id, repo_type=repo_type, revision=revision)
        except RevisionNotFoundError:
            raise
        except (HTTPError, OfflineModeIsEnabled) as error:
            try:
                folder = download(local_files_only=True)
            except LocalEntryNotFoundError:
                raise HubError(f"{act}: {remedy(error)}") from error
            print(
                f"{repo_id}: taken as it was fetched before (commit {folder.name[:8]}), since "
                f"{remedy(error)}",
                file=sys.stderr,
            )
            return folder
        return download()
