"""Hypernetworks named in prompts, as in the web UI: `<hypernet:my_style:0.8>`, from a folder.

>>> parse_prompt_tags("a red star <hypernet:my_style:0.8>")
('a red star ', [('my_style', 0.8)])
"""

import math
import re
import warnings
from collections import defaultdict
from os import PathLike
from pathlib import Path
from typing import overload

from hn.errors import ModelError, OptionError, meant, shown

ENDINGS = (".safetensors", ".pt")  # of a pair that lies side by side, the first is taken
_TAG = re.compile(r"<(\w+):([^>]+)>")
_KIND = "hypernet"
_NOBODY = "None"  # the web UI's word for no hypernetwork

Tags = list[tuple[str, float]]
"""Names with their strengths, in the order in which they are applied."""


@overload
def parse_prompt_tags(prompt: str) -> tuple[str, Tags]: ...
@overload
def parse_prompt_tags(prompt: list[str]) -> tuple[list[str], Tags]: ...
def parse_prompt_tags(prompt: str | list[str]) -> tuple[str | list[str], Tags]:
    """A prompt without its tags, and the hypernetworks they name; the strength of one is 1.

    Of several prompts that are drawn together the first one decides, as in the web UI; one that
    names others is warned about. A name that stands twice is applied twice. Raises `OptionError`
    for a tag of another kind, such as a LoRA's, or with a strength that is not a number.
    """
    if isinstance(prompt, str):
        return _TAG.sub("", prompt), [_read_tag(*found.groups()) for found in _TAG.finditer(prompt)]
    parsed = [parse_prompt_tags(one) for one in prompt]
    first = parsed[0][1] if parsed else []
    for number, (_, tags) in enumerate(parsed, 1):
        if tags != first:
            warnings.warn(
                f"prompt {number} names other hypernetworks than the first one, which decides",
                stacklevel=2,
            )
    return [clean for clean, _ in parsed], first


def write_tag(name: str, strength: float) -> str:
    """The tag that `parse_prompt_tags` reads back."""
    return f"<{_KIND}:{name}:{strength:g}>"


def find_hypernetwork(name: str, folder: str | PathLike[str]) -> Path:
    """The file of that name, without ending, in a folder or the folders below it.

    Raises `ModelError` if there is none, or more than one: `.pt` and `.safetensors` side by side
    are one.
    """
    files = _files_by_name(Path(folder))
    if name not in files:
        known = ", ".join(files) or "none"
        raise ModelError(
            f"no hypernetwork {shown(name)} in {folder}{meant(name, files)}; there are: {known}"
        )
    first, *others = files[name]
    if any(other.parent != first.parent for other in others):
        found = ", ".join(str(path) for path in files[name])
        raise ModelError(
            f"the hypernetwork {shown(name)} is there more than once: {found}. Rename all but one, "
            "or name its file instead of the folder"
        )
    return min(files[name], key=lambda path: ENDINGS.index(path.suffix))


def _files_by_name(folder: Path) -> dict[str, list[Path]]:
    """All files of hypernetworks by stem, by lower-cased path. Raises `ModelError`."""
    if not folder.is_dir():
        raise ModelError(f"the folder of hypernetworks '{folder}' is not there")
    files: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*"), key=lambda path: str(path).lower()):
        if path.suffix in ENDINGS and path.stem != _NOBODY and path.is_file():
            files[path.stem].append(path)
    return dict(files)


def _read_tag(kind: str, content: str) -> tuple[str, float]:
    tag = f"<{kind}:{content}>"
    if kind != _KIND:
        raise OptionError(
            f"the prompt holds the tag {shown(tag)}: only <{_KIND}:name:strength> is read here; "
            "load what it names into the pipeline and take it out of the prompt"
        )
    name, *numbers = content.split(":")
    try:
        strength = float(numbers[0]) if numbers else 1.0
    except ValueError:
        strength = math.nan
    if not name or len(numbers) > 1 or not math.isfinite(strength):
        raise OptionError(
            f"the prompt holds the tag {shown(tag)}: it must be <{_KIND}:name> or "
            f"<{_KIND}:name:0.8>"
        )
    return name, strength
