"""A single file whose tensors are read one by one, when they are asked for."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hn.errors import ModelError
from hn.network import container

_TEXT = "cond_stage_model.transformer.text_model."
_OLD_TEXT = re.compile(
    r"cond_stage_model\.transformer\.(?=(embeddings|encoder|final_layer_norm)\.)"
)  # of merges from before transformers nested it
Shapes = Mapping[str, tuple[int, ...]]
"""By the names of tensors."""


class Source:
    """What a file holds; `tensors` say their shape, and slices of a file are read by `[:]`."""

    def __init__(self, path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        self.path = path
        self.metadata = metadata
        self._tensors = {_OLD_TEXT.sub(_TEXT, name): it for name, it in tensors.items()}
        self._unread = set(self._tensors)
        self.shapes: Shapes = {name: _shape(it) for name, it in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, as it is stored. Raises `KeyError`."""
        self._unread.discard(name)
        return self._tensors[name][:]

    def unread(self, prefix: str) -> list[str]:
        """The tensors with this prefix that nobody has asked for yet."""
        return sorted(name for name in self._unread if name.startswith(prefix))


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """A .safetensors or .ckpt. Raises `ModelError` for what cannot be read."""
    if path.suffix == ".ckpt":
        content = container.read(path)
        state = content.get("state_dict", content) if isinstance(content, dict) else {}
        yield Source(path, {str(k): it for k, it in state.items() if isinstance(it, Tensor)}, {})
        return
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            yield Source(path, slices, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {path} as .safetensors: {error}") from error


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape if isinstance(tensor, Tensor) else tensor.get_shape())
