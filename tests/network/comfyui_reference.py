"""ComfyUI's documented rules for hypernetworks, computed: what its loader makes of a stored dict.

Written from the rules, independently of `hn.network.comfyui`, which predicts without computing.
"""

import torch
from torch import Tensor, nn

ACTIVATIONS = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softsign": nn.Softsign,
    "mish": nn.Mish,
}


class RefusedError(Exception):
    """The model comes back unpatched, or the loader fails."""


def load(state: dict) -> dict[int, tuple[nn.Sequential, nn.Sequential]]:
    """The patch's modules by width. Raises `RefusedError`."""
    activation = state.get("activation_func", "linear")
    if activation not in ACTIVATIONS:
        raise RefusedError(f"activation {activation}")
    found = {}
    for key in state:
        try:
            dim = int(key)
        except (TypeError, ValueError):  # whatever else reads as a number is taken for a width
            continue
        try:
            found[dim] = tuple(_module(state, weights) for weights in state[dim][:2])
        except (KeyError, IndexError) as error:
            raise RefusedError(str(error)) from error
    return found


def run(state: dict, x: Tensor) -> tuple[Tensor, Tensor]:
    """The contexts (B, T, D) that k and v read at strength 1; never put into evaluation mode."""
    k, v = load(state)[x.shape[-1]]
    try:
        return x + k(x), x + v(x)
    except RuntimeError as error:  # shapes that do not follow each other
        raise RefusedError(str(error)) from error


def _module(state: dict, weights: dict[str, Tensor]) -> nn.Sequential:
    stems = [name[: -len(".weight")] for name in weights if name.endswith(".weight")]
    activation = ACTIVATIONS[state.get("activation_func", "linear")]
    made: list[nn.Module] = []
    queue = list(enumerate(stems))
    while queue:
        position, stem = queue.pop(0)
        to_go = len(stems) - position  # this one counted
        shape = weights[f"{stem}.weight"].shape
        made.append(_filled(nn.Linear(shape[1], shape[0]), weights, stem))
        if activation is not nn.Identity and (to_go > 1 or state.get("activate_output", False)):
            made.append(activation())
        if state.get("is_layer_norm", False):
            stem = queue.pop(0)[1]
            made.append(_filled(nn.LayerNorm(len(weights[f"{stem}.weight"])), weights, stem))
        if state.get("use_dropout", False) and (
            to_go > 2 or (to_go == 2 and state.get("last_layer_dropout", False))
        ):
            made.append(nn.Dropout(0.3))
    return nn.Sequential(*made)


def _filled(layer: nn.Module, weights: dict[str, Tensor], stem: str) -> nn.Module:
    layer.load_state_dict(
        {kind: weights[f"{stem}.{kind}"].to(torch.float32) for kind in ("weight", "bias")}
    )
    return layer
