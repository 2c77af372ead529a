"""`<file>.pt.optim`: the web UI's optimizer state beside a hypernetwork, tied to it by a hash.

The web UI uses it only if the hash is that of the `.pt`; its own intermediate files never pass,
since it stores the hash of the file that training began with.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor
from tqdm import tqdm

from hn.errors import ModelError, printable, shown
from hn.network import container
from hn.network.contents import tensor_fault

ENDING = ".optim"
BLOCK = 2**22  # bytes


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """`optimizer_name`: a class of torch.optim. `state`: its `state_dict()`, whose parameters are
    numbered width by width, k before v.
    """

    optimizer_name: str
    file_hash: str | None
    state: dict[str, Any]


def beside(path: Path) -> Path:
    """Where the sidecar of a `.pt` lies."""
    return path.with_name(path.name + ENDING)


def short_hash(path: Path) -> str:
    """Ten hex digits of the SHA-256 of a file, as the web UI shows it. Raises `ModelError`.

    A base model has gigabytes: after a second a bar is shown.
    """
    digest = hashlib.sha256()
    try:
        with (
            open(path, "rb") as file,
            tqdm(
                desc=f"hashing {path.name}",
                total=path.stat().st_size,
                unit="B",
                unit_scale=True,
                delay=1,
                leave=False,
            ) as bar,
        ):
            while block := file.read(BLOCK):
                digest.update(block)
                bar.update(len(block))
        return digest.hexdigest()[:10]
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def read(path: Path) -> Sidecar:
    """Read a sidecar. Raises `ModelError` naming the file and what is wrong with it."""
    content = container.read(path)
    state = content.get("optimizer_state_dict") if isinstance(content, dict) else None
    if not _is_state(state):
        raise ModelError(f"{path} holds no optimizer state; the web UI writes it beside a .pt.")
    for number, values in state["state"].items():
        for name, value in values.items():
            fault = _fault(value)
            if fault is not None:
                raise ModelError(f"{path}: {shown(name)} of parameter {shown(number)} {fault}.")
    file_hash = content.get("hash")
    return Sidecar(
        optimizer_name=_word(content.get("optimizer_name") or "AdamW"),
        file_hash=None if file_hash is None else _word(file_hash),
        state=state,
    )


def _word(value: Any) -> str:
    return printable(value)[:64] if isinstance(value, str) else shown(value)


def _is_state(state: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it is built as an optimizer's `state_dict()` is."""
    return (
        isinstance(state, dict)
        and isinstance(state.get("state"), dict)
        and all(isinstance(values, dict) for values in state["state"].values())
        and isinstance(state.get("param_groups"), list)
        and all(isinstance(group, dict) for group in state["param_groups"])
        and all(isinstance(group.get("params"), list) for group in state["param_groups"])
    )


def _fault(value: Any) -> str | None:
    if isinstance(value, Tensor):
        return tensor_fault(value) or (None if value.isfinite().all() else "holds NaN or infinity")
    plain = value is None or isinstance(value, int | float)
    return None if plain else f"is {shown(value)}, neither a number nor a tensor"


def to_bytes(sidecar: Sidecar) -> bytes:
    """The file's bytes, in the container that every host accepts."""
    return container.write(
        {
            "optimizer_name": sidecar.optimizer_name,
            "hash": sidecar.file_hash,
            "optimizer_state_dict": _on_cpu(sidecar.state),
        }
    )


def _on_cpu(node: Any) -> Any:
    """The same tree, its tensors on the CPU, each with a storage of its own size."""
    if isinstance(node, Tensor):
        return node.detach().cpu().contiguous().clone()
    if isinstance(node, dict):
        return {key: _on_cpu(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(_on_cpu(value) for value in node)
    return node
