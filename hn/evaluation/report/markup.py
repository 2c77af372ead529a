"""HTML by construction: text becomes markup only through `element`, which escapes it."""

from collections.abc import Iterable
from html import escape
from typing import Any

from hn.errors import printable

_VOID = {"img", "meta", "link"}
# Line ends, narrow blanks, joiners of scripts and emoji; what else is invisible is shown as "?".
_INVISIBLE = "\n\t\u00a0\u202f\u200c\u200d"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Iterable[Any] | None
"""Markup, text to escape, any nesting of the two, or nothing."""


def element(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """An element: `class_` is the attribute class, `_` becomes `-`; None and False are left out."""
    given = "".join(
        _attribute(key, value)
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Child) -> Markup:
    """Children one after the other, text escaped."""
    if children is None:
        return Markup()
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(_escaped(children))
    return Markup("".join(map(joined, children)))


def _attribute(key: str, value: str | float | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{_escaped(str(value))}"'


def _escaped(text: str) -> str:
    return escape(printable(text, also=_INVISIBLE))
