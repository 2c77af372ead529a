"""Nested states of optimizers, split into readable JSON and named tensors: no pickle on the way."""

from typing import Any

from torch import Tensor

from hn.errors import StorageError


def flatten(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split nested dicts, lists and tuples into JSON and named tensors.

    Keys keep their type (optimizer states are keyed by int), so a dict becomes a list of pairs.
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, name: str) -> Any:
        if isinstance(node, Tensor):
            tensors[name] = node.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(node, dict):
            return {"dict": [[key, walk(value, f"{name}.{key}")] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            kind = "tuple" if isinstance(node, tuple) else "list"
            return {kind: [walk(value, f"{name}.{i}") for i, value in enumerate(node)]}
        if node is None or isinstance(node, bool | int | float | str):
            return {"value": node}
        raise StorageError(
            f"the optimizer's state holds a {type(node).__name__} ({name}), which cannot be saved"
        )

    return walk(tree, "optimizer"), tensors


def unflatten(node: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten`."""
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(value, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        items = [unflatten(value, tensors) for value in content]
        return items if kind == "list" else tuple(items)
    return content
