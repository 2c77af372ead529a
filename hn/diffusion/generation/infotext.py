"""What a picture was made of, in the web UI's words: the text `parameters` of its PNG file."""

import json
from collections.abc import Mapping
from typing import Any


def write(prompt: str, negative_prompt: str, parameters: Mapping[str, Any]) -> str:
    r"""The text that the web UI reads back under "PNG Info".

    >>> write("a star", "", {"Steps": 20, "Sampler": "Euler a"})
    'a star\nSteps: 20, Sampler: Euler a'
    """
    negative = [f"Negative prompt: {negative_prompt}"] if negative_prompt else []
    values = ", ".join(f"{name}: {_quoted(value)}" for name, value in parameters.items())
    return "\n".join([prompt, *negative, values])


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(",\n:") & set(text) else text
