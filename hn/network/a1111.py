"""The web UI's `.pt`: a flat dictionary of `{width: (k tensors, v tensors)}` and a fixed set of
named values.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hn.errors import ModelError, shown
from hn.network import container
from hn.network.contents import Contents
from hn.network.description import HypernetworkConfig, Provenance
from hn.network.sharing import by_width

_OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}
# ComfyUI refuses both names, and knows both functions.
_PORTABLE = {None: "linear", "hardswish": "swish"}


def read(path: Path) -> Contents:
    """Read any `.pt` the web UI reads, with its defaults for what the file leaves out.

    Raises `ModelError` naming the file, the entry and what to do.
    """
    try:
        return from_dict(container.read(path), default_name=path.stem)
    except ModelError as error:
        raise error if str(path) in str(error) else ModelError(f"{path}: {error}") from error


def to_bytes(contents: Contents, name: str) -> bytes:
    """The file's bytes; `name` is the file's stem: the web UI caches networks under it."""
    return container.write(to_dict(contents, name))


def from_dict(state: Any, default_name: str) -> Contents:
    """What `state` describes. A missing value has the web UI's default."""
    if not isinstance(state, dict):
        raise ModelError(
            f"this is no hypernetwork: it holds a {type(state).__name__}, not a dictionary"
        )
    pairs = {key: value for key, value in state.items() if type(key) is int}
    if not pairs:
        keys = ", ".join(shown(key) for key in list(state)[:5])
        raise ModelError(
            "this is no hypernetwork: no key is a context width such as 768 (an int). It holds "
            f"{keys or 'nothing'}"
        )
    config = _config(state, tuple(pairs))
    tensors = {
        f"{dim}.{kind}.{key}": tensor
        for dim, pair in pairs.items()
        for kind, weights in zip("kv", _pair(dim, pair), strict=True)
        for key, tensor in _renamed(weights).items()
    }
    return Contents(
        config=config,
        provenance=_provenance(state, default_name),
        tensors=tensors,
        values={key: value for key, value in state.items() if key not in pairs},
    ).check()


def to_dict(contents: Contents, name: str) -> dict[int | str, Any]:
    """Every key the web UI writes, in its order, as plain types.

    Raises `ModelError` for what has no such form.
    """
    contents = by_width(contents)
    tensors = contents.packed()
    state: dict[int | str, Any] = {dim: _weights(tensors, dim) for dim in contents.config.dims}
    return state | named_values(contents, name)


def named_values(contents: Contents, name: str) -> dict[str, Any]:
    """What stands beside the weights: every flag, explicitly, since hosts differ in what they
    assume.
    """
    config, provenance = contents.config, contents.provenance
    return {
        "step": provenance.step,
        "name": name,
        "layer_structure": list(config.layer_structure),
        "activation_func": _PORTABLE.get(config.activation_func, config.activation_func),
        "is_layer_norm": config.is_layer_norm,
        "weight_initialization": config.weight_initialization,
        "sd_checkpoint": provenance.sd_checkpoint,
        "sd_checkpoint_name": provenance.sd_checkpoint_name,
        "activate_output": config.activate_output,
        "use_dropout": config.use_dropout,
        "dropout_structure": list(config.dropout_structure),
        "last_layer_dropout": config.last_layer_dropout,
        "optional_info": provenance.optional_info or None,
    }


def unread(contents: Contents) -> list[Any]:
    """The keys of a file that are neither widths nor values that a host reads."""
    return [key for key in contents.values if key not in named_values(contents, "")]


def _pair(dim: int, pair: Any) -> tuple[dict, dict]:
    if (
        not isinstance(pair, tuple | list)
        or len(pair) < 2
        or not all(isinstance(p, dict) for p in pair[:2])
    ):
        raise ModelError(f"width {dim} must hold two dictionaries of tensors, for k and for v")
    return pair[0], pair[1]


def _renamed(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The oldest files say `linear1.weight` for `linear.0.weight`."""
    renamed = {}
    for key, tensor in weights.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ModelError(f"the entry {shown(key)} is a {type(tensor).__name__}, not a tensor")
        first, _, rest = key.partition(".")
        # of a parameter, only its numbers
        renamed[f"{_OLD_NAMES[first]}.{rest}" if first in _OLD_NAMES else key] = tensor.detach()
    return renamed


def _config(state: Mapping[Any, Any], dims: tuple[int, ...]) -> HypernetworkConfig:
    structure = _tuple(state, "layer_structure", (1, 2, 1))
    use_dropout = _flag(state, "use_dropout", False)
    if state.get("dropout_structure") is None:
        last = _flag(state, "last_layer_dropout", False)
        dropout = parse_dropout_structure(structure, use_dropout, last)
    else:
        dropout = _tuple(state, "dropout_structure", ()) or (0,)  # empty is too short, not absent
    return HypernetworkConfig(
        dims=dims,
        layer_structure=structure,
        activation_func=state.get("activation_func"),
        weight_initialization=_text(state, "weight_initialization", "Normal") or "None",
        is_layer_norm=_flag(state, "is_layer_norm", False),
        activate_output=_flag(state, "activate_output", True),
        use_dropout=use_dropout,
        dropout_structure=dropout,
    )


def _tuple(state: Mapping[Any, Any], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = state.get(key, default)
    if not isinstance(value, list | tuple):
        raise ModelError(f"{key} must be a list of numbers; found {shown(value)}")
    return tuple(value)


def _flag(state: Mapping[Any, Any], key: str, default: bool) -> bool:
    """What the web UI takes for true, of what is no container."""
    value = state.get(key, default)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ModelError(f"{key} must be true or false; found {shown(value)}")
    return bool(value)


def parse_dropout_structure(
    structure: tuple[float, ...], use: bool, last: bool
) -> tuple[float, ...]:
    """What two flags of old files imply: 0.3 after hidden layers, the last only if asked."""
    if not use:
        return (0,) * len(structure)
    return (0, *(0.3,) * (len(structure) - 3), 0.3 if last else 0, 0)


def _provenance(state: Mapping[Any, Any], default_name: str) -> Provenance:
    return Provenance(
        name=_text(state, "name") or default_name,
        step=_step(state),
        sd_checkpoint=_text(state, "sd_checkpoint"),
        sd_checkpoint_name=_text(state, "sd_checkpoint_name"),
        optional_info=_text(state, "optional_info"),
    )


def _step(state: Mapping[Any, Any]) -> int:
    """Some store a whole number as a float, and the web UI takes None for a new file."""
    value = state.get("step")
    whole = isinstance(value, float) and value.is_integer()
    if value is not None and not whole and not isinstance(value, int):
        raise ModelError(f"step must be a number of steps; found {shown(value)}")
    return int(value or 0)


def _text(state: Mapping[Any, Any], key: str, default: str | None = None) -> str | None:
    value = state.get(key, default)
    return value if value is None or isinstance(value, str) else shown(value)


def _weights(
    tensors: Mapping[str, Tensor], dim: int
) -> tuple[OrderedDict[str, Tensor], OrderedDict[str, Tensor]]:
    """The tensors of k and of v, in ascending order: ComfyUI builds its layers from that order."""
    k, v = (
        OrderedDict(
            (key.removeprefix(prefix), tensor)
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        )
        for prefix in (f"{dim}.k.", f"{dim}.v.")
    )
    return k, v
