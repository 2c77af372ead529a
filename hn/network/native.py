"""Our `.safetensors`: tensors named `768.k.linear.0.weight`, and the whole description as JSON in
the header.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hn.errors import ModelError
from hn.network.contents import Contents
from hn.network.description import HypernetworkConfig, Provenance

FORMAT_VERSION = 1
# One key only: the order of several is not fixed, and equal runs must give equal bytes.
HEADER_KEY = "hypernetwork"


def read(path: Path) -> Contents:
    """Read what `to_bytes` wrote. Raises `ModelError` for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {path}: {error}. Download or export it again.") from error
    if HEADER_KEY not in metadata:
        raise ModelError(
            f"{path} is a .safetensors file, but no hypernetwork of ours: its header has no "
            f"'{HEADER_KEY}' entry. Its first tensors are "
            f"{', '.join(sorted(tensors)[:3]) or 'none'}."
        )
    try:
        config, provenance = _described(json.loads(metadata[HEADER_KEY]))
        return Contents(config=config, provenance=provenance, tensors=tensors).check()
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: {error}") from error


def to_bytes(contents: Contents, name: str) -> bytes:
    """The file's bytes: the same contents always give the same ones."""
    description = {
        "format_version": FORMAT_VERSION,
        "config": asdict(contents.config),
        "provenance": asdict(contents.provenance) | {"name": name},
    }
    return save(contents.packed(), metadata={HEADER_KEY: json.dumps(description, sort_keys=True)})


def _described(description: Any) -> tuple[HypernetworkConfig, Provenance]:
    version = description["format_version"]
    if version > FORMAT_VERSION:
        raise ModelError(
            f"it was written by a newer version (format {version}, this one reads {FORMAT_VERSION})"
        )
    config: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in description["config"].items()
    }
    return HypernetworkConfig(**config), Provenance(**description["provenance"])
