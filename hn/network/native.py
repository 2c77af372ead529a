"""Our `.safetensors`: tensors named `768.k.linear.0.weight` (of a block's own modules
`down_1.768.k.linear.0.weight`), and the whole description as JSON in the header.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hn.errors import ModelError, printable, shown
from hn.network.contents import Contents
from hn.network.description import HypernetworkConfig, Provenance

FORMAT_VERSION = 2
_EVERYWHERE = 1  # what is no more than that is written as it always was, for older readers
# One key only: the order of several is not fixed, and equal runs must give equal bytes.
HEADER_KEY = "hypernetwork"


def read(path: Path) -> Contents:
    """Read what `to_bytes` wrote. Raises `ModelError` for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            config, provenance = _described(file.metadata() or {}, names)
            tensors = {name: file.get_tensor(name) for name in names}
        contents = Contents(config=config, provenance=provenance, tensors=tensors).check()
        return contents.with_config()  # in the order of the layers; the file has one of its own
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {path}: {error}. Download or export it again.") from error


def to_bytes(contents: Contents, name: str) -> bytes:
    """The file's bytes: the same contents always give the same ones."""
    everywhere = contents.config.is_everywhere
    description = {
        "format_version": _EVERYWHERE if everywhere else FORMAT_VERSION,
        "config": contents.config.as_dict(),
        "provenance": asdict(contents.provenance) | {"name": name},
    }
    return save(contents.packed(), metadata={HEADER_KEY: json.dumps(description, sort_keys=True)})


def _described(metadata: dict[str, str], names: list[str]) -> tuple[HypernetworkConfig, Provenance]:
    if HEADER_KEY not in metadata:
        raise ModelError(
            "this is a .safetensors file, but no hypernetwork of ours: its header has no "
            f"'{HEADER_KEY}' entry. Its first tensors are {shown(sorted(names)[:3])}."
        )
    try:
        description = json.loads(metadata[HEADER_KEY])
        version = description["format_version"]
        if version > FORMAT_VERSION:
            raise ModelError(
                f"it was written by a newer version (format {shown(version)}, this one reads "
                f"{FORMAT_VERSION})"
            )
        config = {key: _as_tuples(value) for key, value in description["config"].items()}
        return HypernetworkConfig(**config), Provenance(**description["provenance"])
    except ModelError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"its '{HEADER_KEY}' entry is not what we write ({printable(str(error))[:300]})"
        ) from error


def _as_tuples(value: Any) -> Any:
    """JSON's lists as tuples, those within them, too."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
