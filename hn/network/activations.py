"""The activations a hypernetwork may have, by the web UI's names.

Its own seven names come first: there, "swish" is Hardswish, so "silu" is another function. Every
other name is a class of `torch.nn.modules.activation` in lower case, made with default arguments.
"""

from torch import nn
from torch.nn.modules import activation as torch_activations

from hn.errors import ModelError, shown

_OWN: dict[str, type[nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
# glu halves the width, the other two need arguments: the web UI lists them and fails with them.
_UNUSABLE = {"glu", "multiheadattention", "threshold"}
_ALL = {
    name.lower(): cls
    for name, cls in vars(torch_activations).items()
    if isinstance(cls, type)
    and issubclass(cls, nn.Module)
    and cls.__module__ == torch_activations.__name__
} | _OWN
# Left to themselves they choose the axis from the rank; for a context (B, T, D) that is the batch.
_OVER_BATCH = {"softmax", "softmin", "logsoftmax"}

NAMES = tuple(sorted(set(_ALL) - _UNUSABLE - {"module"}))


def make_activation(name: str) -> nn.Module:
    """Build an activation. Raises `ModelError` for a name the web UI cannot use."""
    if name not in NAMES:
        raise ModelError(
            f"activation_func {shown(name)} is not known; it is one of: {', '.join(NAMES)}"
        )
    return _ALL[name](dim=0) if name in _OVER_BATCH else _ALL[name]()
