"""What everybody may read: no local path, no token, no markup that was not meant."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hn import demo
from hn.config import SECTIONS, Config

_LOCAL = re.compile(r"[/~.\\]|[A-Za-z]:[\\/]")
_TOKEN = re.compile(r"\bhf_\w{6,}")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Settings that hold words to be seen, with slashes or without.
_WORDS = ("validation_prompt", "validation_negative_prompt", "caption_prefix", "caption_suffix")
# Settings that name places, but for those where the name of a repository may stand.
_PLACES = ("_dir", "_folders", "_file")
_PERHAPS_REMOTE = (
    "pretrained_model_name_or_path",
    "hypernetwork_path",
    "cached_data_dir",
    "dataset_name",
)


def public(value: Any) -> str:
    """A value as text for everybody."""
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, str) and is_local(text):
        return "(a file or folder)"
    if _TOKEN.search(text):
        return "(a token)"
    return re.sub(r"[^\w .,:;/+=()-]", "?", text[:200]) or "(empty)"


def is_local(text: str) -> bool:
    """Whether it may be a path; `owner/name` is an id unless there is such a folder here."""
    if _LOCAL.match(text) or "\\" in text or text.count("/") > 1:
        return True
    return "/" in text and Path(text).exists()


def is_remote(text: str) -> bool:
    """Whether it is the id of a repository, and nothing here."""
    return _REPOSITORY.fullmatch(text) is not None and not is_local(text)


def public_settings(config: Config) -> Config:
    """The settings, with the defaults in place of all that names something on this machine."""
    kept = {}
    for section in SECTIONS:
        values = getattr(config, section)
        hidden = {f.name: f.default for f in fields(values) if not _may_be_seen(f.name, values)}
        kept[section] = replace(values, **hidden)
    return replace(config, config=None, **kept)


def shown_as_is(text: str) -> str:
    """Lines for a card in which nothing is markup, without tokens."""
    text = _TOKEN.sub("(a token)", text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table for a card; nothing where there are no rows."""
    lines = [f"| {' | '.join(map(public, row))} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines])


def _may_be_seen(name: str, values: Any) -> bool:
    value = getattr(values, name)
    texts = [value] if isinstance(value, str) else value if isinstance(value, tuple) else []
    texts = [text for text in texts if isinstance(text, str)]
    if any(_TOKEN.search(text) for text in texts):
        return False
    if name in _WORDS or value == demo.NAME:
        return True
    if name in _PERHAPS_REMOTE:
        return all(map(is_remote, texts))
    return not texts or not (name.endswith(_PLACES) or any(map(is_local, texts)))
