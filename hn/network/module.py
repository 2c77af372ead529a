"""Residual MLPs that rewrite attention contexts: one (k, v) pair for each context width.

A context `x` (B, T, D) becomes `x + strength * mlp(x)` before `to_k`, and with another MLP before
`to_v`. The mathematics, the layer order and the order in which random numbers are drawn are those
of the AUTOMATIC1111 web UI, so its files compute the same here and a seed gives the same initial
weights as there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from hn.errors import ModelError
from hn.network.activations import make_activation
from hn.network.initialisers import initialise

Stack = Sequence[tuple["Hypernetwork", float]]
"""Hypernetworks with their strengths, in the order in which they are applied."""


@dataclass(frozen=True, kw_only=True)
class HypernetworkConfig:
    """What the modules look like. Field names are those of the web UI's files.

    `dims`: context widths, in file order. `layer_structure`: width multipliers from input to
    output, starting and ending with 1. `activation_func`: a web UI name, see `activations.NAMES`;
    None is linear. `dropout_structure`: one probability for each entry of `layer_structure` (the
    first is never used). `use_dropout` is information for other hosts: what is built follows
    `dropout_structure` alone.
    """

    dims: tuple[int, ...]
    layer_structure: tuple[float, ...] = (1, 2, 1)
    activation_func: str | None = "linear"
    weight_initialization: str = "identity"
    is_layer_norm: bool = False
    activate_output: bool = False
    use_dropout: bool = False
    dropout_structure: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.dropout_structure:
            object.__setattr__(self, "dropout_structure", (0,) * len(self.layer_structure))
        if any(self.dropout_structure) and not self.use_dropout:
            object.__setattr__(self, "use_dropout", True)
        self._check()

    def _check(self) -> None:
        structure, dropout = self.layer_structure, self.dropout_structure
        if not self.dims or len(set(self.dims)) != len(self.dims) or min(self.dims) < 1:
            raise ModelError(
                f"dims must be different positive widths, such as (320, 768); found {self.dims}"
            )
        if not structure or structure[0] != 1 or structure[-1] != 1:
            raise ModelError(
                f"layer_structure must start and end with 1, such as (1, 2, 1); found {structure}"
            )
        if len(dropout) < len(structure):
            raise ModelError(
                f"dropout_structure needs one probability for each of the {len(structure)} entries "
                f"of layer_structure {structure}; found {dropout}"
            )
        if any(p >= 1 for p in dropout[1 : len(structure)]):
            raise ModelError(
                f"dropout_structure holds probabilities of at least 0, below 1; found {dropout}"
            )

    @property
    def last_layer_dropout(self) -> bool:
        """Whether the last hidden layer has dropout, as the web UI derives it when it saves."""
        return len(self.dropout_structure) > 1 and self.dropout_structure[-2] != 0


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a hypernetwork comes from: information that no host computes with."""

    name: str = ""
    step: int = 0
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    optional_info: str | None = None


class HypernetworkModule(nn.Module):
    """One residual MLP for contexts of one width: `x + strength * linear(x)`.

    `draw_weights=False` leaves them as torch makes them, for a file to fill: a file may name an
    initialiser that nobody knows, since only creation uses it.
    """

    def __init__(self, dim: int, config: HypernetworkConfig, *, draw_weights: bool = True) -> None:
        super().__init__()
        self.linear = nn.Sequential(*_layers(dim, config))
        if draw_weights:
            initialise(self.linear, config.weight_initialization)

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Rewrite a context (B, T, D) in its dtype; training ignores strength, as in the web UI."""
        change = self.linear(self._as_weights(x))
        if not self.training:
            change = change * strength
        return x + change.to(x.dtype)

    def _as_weights(self, x: Tensor) -> Tensor:
        """`x` in the weights' dtype, unless autocast decides."""
        weight = next(self.parameters(), x)
        return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


def _layers(dim: int, config: HypernetworkConfig) -> Iterable[nn.Module]:
    """Linear, activation, LayerNorm, Dropout for each step, each where the config asks for it."""
    structure = config.layer_structure
    widths = [int(dim * multiplier) for multiplier in structure]
    for i, (width_in, width_out) in enumerate(pairwise(widths), start=1):
        last = i == len(structure) - 1
        yield nn.Linear(width_in, width_out)
        if config.activation_func not in ("linear", None) and (not last or config.activate_output):
            yield make_activation(config.activation_func)
        if config.is_layer_norm:
            yield nn.LayerNorm(width_out)
        if config.dropout_structure[i] > 0:
            yield nn.Dropout(config.dropout_structure[i])


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw from `seed` and restore the global random state; None draws from that state."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    faults = [f"{key} is missing" for key in expected if key not in found]
    faults += [f"{key} is not part of this structure" for key in found if key not in expected]
    faults += [
        f"{key} has the shape {tuple(found[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    faults = faults or [f"{key} {fault}" for key, t in found.items() if (fault := _tensor_fault(t))]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ModelError(
            "the weights do not fit the described structure: " + "; ".join(faults[:5]) + more
        )


def _tensor_fault(tensor: Tensor) -> str | None:
    """What a hostile or spoilt file may hold, found before anything is allocated for it."""
    if tensor.layout != torch.strided or tensor.is_quantized or not tensor.is_floating_point():
        return f"is no plain tensor of numbers ({tensor.dtype}, {tensor.layout})"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"claims {tensor.numel()} numbers, more than the file holds"
    return None if tensor.isfinite().all() else "holds NaN or infinity"


class Hypernetwork(nn.Module):
    """The (k, v) pairs of all widths; float32, in evaluation mode until it is trained."""

    def __init__(
        self,
        config: HypernetworkConfig,
        provenance: Provenance | None = None,
        *,
        draw_weights: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.provenance = provenance or Provenance()
        self.pairs = nn.ModuleDict(
            {
                str(dim): nn.ModuleDict(
                    {
                        kind: HypernetworkModule(dim, config, draw_weights=draw_weights)
                        for kind in "kv"
                    }
                )
                for dim in config.dims
            }
        )
        self.eval()

    @classmethod
    def from_tensors(
        cls, config: HypernetworkConfig, provenance: Provenance, tensors: Mapping[str, Tensor]
    ) -> Self:
        """Build from named tensors such as `768.k.linear.0.weight`, converted to float32.

        Draws no random numbers. Raises `ModelError` naming every tensor that is missing, unknown or
        misshapen.
        """
        with torch.device("meta"):
            net = cls(config, provenance, draw_weights=False)
        _check_tensors(net.tensors(), tensors)
        weights = {
            f"pairs.{key}": tensor.detach().float().clone() for key, tensor in tensors.items()
        }
        net.load_state_dict(weights, assign=True)
        return net

    def tensors(self) -> dict[str, Tensor]:
        """The weights by names such as `768.k.linear.0.weight`, in parameter order; not copied."""
        return {key.removeprefix("pairs."): tensor for key, tensor in self.state_dict().items()}

    @classmethod
    def create(
        cls,
        dims: Sequence[int],
        *,
        layer_structure: Sequence[float] = (1, 2, 1),
        activation_func: str | None = "linear",
        weight_initialization: str = "identity",
        is_layer_norm: bool = False,
        activate_output: bool = False,
        dropout_structure: Sequence[float] | None = None,
        seed: int | None = None,
        name: str = "",
    ) -> Self:
        """Make a new hypernetwork, at step 0.

        With `weight_initialization="identity"`, the default, it starts as the base model. With a
        `seed` its weights are reproducible (and the global random state is left alone). Raises
        `ModelError` for what cannot be built.
        """
        config = HypernetworkConfig(
            dims=tuple(dims),
            layer_structure=tuple(layer_structure),
            activation_func=activation_func,
            weight_initialization=weight_initialization,
            is_layer_norm=is_layer_norm,
            activate_output=activate_output,
            dropout_structure=tuple(dropout_structure or ()),
        )
        with _seeded(seed):
            return cls(config, Provenance(name=name))

    @property
    def dims(self) -> tuple[int, ...]:
        """The context widths it has a pair for."""
        return self.config.dims

    @property
    def has_active_dropout(self) -> bool:
        """Whether calling it twice gives two results."""
        random = (nn.Dropout, nn.RReLU)
        return self.training and any(isinstance(module, random) for module in self.modules())

    def describe(self, **changes: Any) -> None:
        """Set fields of the provenance, such as `step=500`."""
        self.provenance = replace(self.provenance, **changes)

    def forward(
        self, context_k: Tensor, context_v: Tensor, strength: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Rewrite the contexts (B, T, D) of keys and values; an unknown width passes unchanged."""
        key = str(context_k.shape[-1])
        if key not in self.pairs or (strength == 0 and not self.training):
            return context_k, context_v
        pair = self.pairs[key]
        assert isinstance(pair, nn.ModuleDict)
        return pair["k"](context_k, strength), pair["v"](context_v, strength)


def transform_context(context: Tensor, stack: Stack) -> tuple[Tensor, Tensor]:
    """What `to_k` and `to_v` read instead of `context` (B, T, D), after the whole stack."""
    context_k = context_v = context
    for net, strength in stack:
        context_k, context_v = net(context_k, context_v, strength)
    return context_k, context_v
