"""What a picture was made of, in the web UI's words: the text `parameters` of its PNG file."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hn.diffusion.tags import write_tag

NEGATIVE = "Negative prompt: "
_PARAMETER = re.compile(r'(?P<name>[A-Za-z][\w +/-]*): (?P<value>"(?:[^"\\]|\\.)*"|[^,]*)(?:, |$)')
_FEWEST = 3  # parameters; a line of fewer is the prompt's


@dataclass(frozen=True)
class Described:
    """What a picture says of itself; of `parameters`, names and values as they stand there."""

    prompt: str
    negative_prompt: str
    parameters: dict[str, str]


def write(prompt: str, negative_prompt: str, parameters: Mapping[str, Any]) -> str:
    r"""The text that the web UI reads back under "PNG Info".

    >>> write("a star", "", {"Steps": 20, "Sampler": "Euler a"})
    'a star\nSteps: 20, Sampler: Euler a'
    """
    negative = [f"{NEGATIVE}{negative_prompt}"] if negative_prompt else []
    values = ", ".join(f"{name}: {_quoted(value)}" for name, value in parameters.items())
    return "\n".join([prompt, *negative, values])


def read(text: str) -> Described:
    r"""What `write` or the web UI wrote, of any age: a hypernetwork that early versions named among
    the parameters becomes a tag of the prompt, as there.

    >>> read("a star\nSteps: 20, Sampler: PLMS, Seed: 1, Hypernet: x(5ad1), Hypernet strength: 0.5")
    Described(prompt='a star <hypernet:x:0.5>', negative_prompt='', parameters={'Steps': '20', \
    'Sampler': 'PLMS', 'Seed': '1'})
    """
    *lines, last = text.strip().split("\n")
    found = {it["name"]: _plain(it["value"]) for it in _PARAMETER.finditer(last)}
    if len(found) < _FEWEST:
        lines, found = [*lines, last], {}
    prompt, _, negative = "\n".join(lines).partition(f"\n{NEGATIVE}")
    if prompt.startswith(NEGATIVE):
        prompt, negative = "", prompt.removeprefix(NEGATIVE)
    name, strength = found.pop("Hypernet", None), found.pop("Hypernet strength", "1")
    if name is not None:
        prompt += " " + write_tag(re.sub(r"\([0-9a-f]*\)$", "", name), float(strength))
    return Described(prompt.strip(), negative.strip(), found)


def _plain(value: str) -> str:
    """Without the quotes that `_quoted` adds. Raises `ValueError`."""
    return json.loads(value) if value.startswith('"') else value.strip()


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(",\n:") & set(text) else text
