"""How weights start: the web UI's five initialisers, and *identity*, which starts as the base
model.

Random numbers are drawn in the web UI's order, from torch's global generator: first what each new
layer draws for itself, then, layer by layer, what is drawn here.
"""

import torch
from torch import nn

from hn.errors import ModelError, shown

NAMES = ("identity", "Normal", "KaimingUniform", "KaimingNormal", "XavierUniform", "XavierNormal")


def initialise(layers: nn.Sequential, name: str) -> None:
    """Draw the weights of one module's `layers`. Raises `ModelError` for an unknown `name`."""
    if name not in NAMES:
        raise ModelError(
            f"weight_initialization {shown(name)} is not known; it is one of: {', '.join(NAMES)}"
        )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            _draw_linear(layer, name)
        elif isinstance(layer, nn.LayerNorm) and name != "identity":
            _draw_normal(layer)  # whatever the initialiser, also in the web UI
    if name == "identity":
        _start_as_identity(layers)


def _draw_linear(layer: nn.Linear, name: str) -> None:
    """Draw the weight, zero the bias. The web UI's Kaiming gain for leakyrelu is that of relu."""
    if name == "Normal":
        _draw_normal(layer)
        return
    if name == "XavierUniform":
        nn.init.xavier_uniform_(layer.weight)
    elif name == "XavierNormal":
        nn.init.xavier_normal_(layer.weight)
    elif name == "KaimingNormal":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    else:  # KaimingUniform; identity takes it for its hidden layers
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)


def _draw_normal(layer: nn.Linear | nn.LayerNorm) -> None:
    nn.init.normal_(layer.weight, mean=0.0, std=0.01)
    # Zero, but drawn: the web UI's random stream moves on.
    nn.init.normal_(layer.bias, mean=0.0, std=0.0)


def _start_as_identity(layers: nn.Sequential) -> None:
    """Zero the last Linear layer, so that the module adds nothing at first.

    Raises `ModelError` where an activation follows it that does not map 0 to 0, or that has no
    slope there and so would never let a gradient through.
    """
    linears = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    if not linears:
        raise ModelError(
            "weight_initialization 'identity' needs a layer; layer_structure has one entry"
        )
    last = layers[linears[-1]]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    for layer in list(layers)[linears[-1] + 1 :]:
        if not isinstance(layer, nn.LayerNorm | nn.Dropout):
            _check_slope_at_zero(layer)


def _check_slope_at_zero(activation: nn.Module) -> None:
    zero = torch.zeros(2, 2, 2, requires_grad=True)
    value = activation(zero)
    (slope,) = torch.autograd.grad(value.sum(), zero)
    if value.abs().max() > 0 or slope.abs().max() == 0:
        name = type(activation).__name__.lower()
        raise ModelError(
            "weight_initialization 'identity' cannot start a module whose output is activated by "
            f"{name}: at zero it is not zero, or has no slope. Choose another "
            "weight_initialization, or activate_output = false."
        )
