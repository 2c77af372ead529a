"""Reads the golden data beside this file."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent


def read_json(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def read_tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / name)
