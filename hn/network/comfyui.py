"""The layers that ComfyUI builds from a file, by its rules (its `nodes_hypernetwork.py`, 2026).

It goes by the order of the stored tensors and by the flags as they are stored, with defaults of its
own; the web UI goes by names, and by defaults of its own.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hn.network.contents import Contents
from hn.network.description import layers

ACTIVATIONS = (
    "linear",
    "relu",
    "leakyrelu",
    "elu",
    "swish",
    "tanh",
    "sigmoid",
    "softsign",
    "mish",
)


def differs(contents: Contents, values: Mapping[str, Any]) -> bool:
    """Whether any module has other layers there than in the web UI; `values` are as stored."""
    return any(
        plan(_stored_names(contents.tensors, f"{dim}.{side}."), values)
        != _web_ui_plan(contents, dim)
        for dim in contents.config.dims
        for side in "kv"
    )


def _web_ui_plan(contents: Contents, dim: int) -> list[tuple[str, str]]:
    """The layers that compute, as the web UI has them: dropout sleeps while it paints."""
    return [
        (layer.kind, str(layer.value) if layer.kind == "activation" else f"linear.{index}")
        for index, layer in enumerate(layers(dim, contents.config))
        if layer.kind != "dropout"
    ]


def _stored_names(tensors: Mapping[str, Tensor], prefix: str) -> list[str]:
    """`linear.0` and so on for each weight, in the file's order."""
    names = (key.removeprefix(prefix) for key in tensors if key.startswith(prefix))
    return [name.removesuffix(".weight") for name in names if name.endswith(".weight")]


def plan(names: list[str], values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The layers ComfyUI builds: a LayerNorm is the next weight; "last" counts weights, not layers;
    its dropout is awake.
    """
    activation, norm = values.get("activation_func", "linear"), values.get("is_layer_norm", False)
    plan = []
    for place in range(0, len(names), 2 if norm else 1):
        after = len(names) - 1 - place  # weights that follow
        plan.append(("linear", names[place]))
        if activation != "linear" and (after > 0 or values.get("activate_output", False)):
            plan.append(("activation", activation))
        if norm:
            plan.append(("norm", names[place + 1]))
        awake = after > 1 or (after == 1 and values.get("last_layer_dropout", False))
        if values.get("use_dropout", False) and awake:
            plan.append(("dropout", "0.3"))
    return plan
