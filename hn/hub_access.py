"""Repositories by name, and what a user can do where the Hugging Face Hub says no."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    # The library's own name for what its HTTP client raises; the client differs between versions.
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_token, validate_repo_id

from hn.errors import HubError, OptionError, StorageError, UserError, shown

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_BY_KIND = {
    GatedRepoError: f"it asks for consent: give it on the repository's page, then {LOG_IN}",
    RevisionNotFoundError: "it has no such revision: give one of its branches, tags or commits",
    RepositoryNotFoundError: "there is no such repository, or it is private and not yours: check "
    f"its id; if it is right, {LOG_IN} as somebody who may see it",
    OfflineModeIsEnabled: "HF_HUB_OFFLINE is set: unset it",
}
_BY_STATUS = {
    401: "the hub does not accept this token: make one at https://huggingface.co/settings/tokens, "
    f"then {LOG_IN}",
    403: "the token has no right to this: the id must begin with your own name or that of an "
    "organisation you may write to, and the token needs the role write "
    "(https://huggingface.co/settings/tokens)",
    429: "the hub has had too many requests: run it again in some minutes; what is there already "
    "is not transferred again",
}

_PASSING = (408, 409, 412, 429)  # late, at the same time as others, too often


def check_repo_id(repo_id: str) -> None:
    """Refuse what is not owner/name. Raises `OptionError`."""
    reason = "there is no owner"
    try:
        validate_repo_id(repo_id)
        if "/" in repo_id:
            return
    except HFValidationError as error:
        reason = str(error)
    raise OptionError(
        f"{shown(repo_id)} is not the id of a repository: it must be owner/name, such as "
        f"me/my_pictures, of letters, digits and ._- ({reason})"
    )


def check_token(token: str | None) -> None:
    """Refuse to go on without a token. Raises `HubError`."""
    if not (token or get_token()):
        raise HubError(f"no token: writing to the Hugging Face Hub needs one; {LOG_IN}")


@contextmanager
def remedied(act: str) -> Iterator[None]:
    """Say of what the hub's library raises what to do; `act` opens the sentence.

    Raises `HubError`, or `StorageError` for what is wrong with the disk.
    """
    try:
        yield
    except UserError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        if _of_the_disk(error):
            raise StorageError(
                f"{act}: {error}. Free some space and see that the folder can be written; what is "
                "fetched lies under HF_HOME, which may be set to another one."
            ) from error
        raise HubError(f"{act}: {remedy(error)}") from error


def remedy(error: BaseException) -> str:
    """What is wrong and what to do, in one sentence without anybody's token."""
    cause = _http_cause(error)
    for kind, advice in _BY_KIND.items():
        if isinstance(cause, kind):
            return advice
    if isinstance(cause, HfHubHTTPError):
        return _remedy_of_answer(cause)
    if isinstance(cause, HTTPError):
        return f"{constants.ENDPOINT} cannot be reached ({said(cause)}): check the network"
    return said(cause)


def may_pass(error: BaseException) -> bool:
    """Whether the same may work later: a network that is down, a hub that is not well or busy."""
    cause = _http_cause(error)
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code >= 500 or cause.response.status_code in _PASSING
    return isinstance(cause, HTTPError | ConnectionError)


def _remedy_of_answer(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status >= 500:
        return f"the hub is not well (it answers {status}): run it again later"
    if status not in _BY_STATUS:
        return said(error)
    # A 403 may also be a full account, or a blocked one: only the hub knows.
    message = error.server_message
    return _BY_STATUS[status] + (f"; the hub says: {said(Exception(message))}" if message else "")


def said(error: BaseException) -> str:
    """Its message in one line, without what looks like a token."""
    words = str(error).split() or [type(error).__name__]
    return re.sub(r"hf_\w+", "hf_...", " ".join(words))[:600]


def _http_cause(error: BaseException) -> BaseException:
    """The error itself or the one of HTTP that led to it: uploads wrap theirs."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HTTPError | OfflineModeIsEnabled):
            return cause
        cause = cause.__cause__
    return error


def _of_the_disk(error: Exception) -> bool:
    return (
        isinstance(error, OSError)
        and not isinstance(error, HTTPError | ConnectionError)
        and error.errno is not None
    )
