"""Residual MLPs that rewrite attention contexts: one (k, v) pair for each context width.

A context `x` (B, T, D) becomes `x + strength * mlp(x)` before `to_k`, and with another MLP before
`to_v`. The mathematics, the layer order and the order in which random numbers are drawn are those
of the AUTOMATIC1111 web UI, so its files compute the same here and a seed gives the same initial
weights as there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from hn.errors import ModelError, shown
from hn.network.activations import make_activation
from hn.network.description import HypernetworkConfig, Layer, Provenance, layers
from hn.network.initialisers import initialise

Amount = float | Tensor
"""A strength; one that changes while denoising is a tensor (), so that nothing waits for it."""
Sides = Amount | tuple[Amount, Amount]
"""One strength for keys and values, or one for each."""
Stack = Sequence[tuple["Hypernetwork", Sides]]
"""Hypernetworks with their strengths, in the order in which they are applied."""


class HypernetworkModule(nn.Module):
    """One residual MLP for contexts of one width: `x + strength * linear(x)`.

    `draw_weights=False` leaves them as torch makes them, for a file to fill: a file may name an
    initialiser that nobody knows, since only creation uses it.
    """

    def __init__(self, dim: int, config: HypernetworkConfig, *, draw_weights: bool = True) -> None:
        super().__init__()
        self.linear = nn.Sequential(*map(_make, layers(dim, config)))
        if draw_weights:
            initialise(self.linear, config.weight_initialization)

    def forward(self, x: Tensor, strength: Amount = 1.0) -> Tensor:
        """Rewrite a context (B, T, D) in its dtype; training ignores strength, as in the web UI."""
        if not self.training and not isinstance(strength, Tensor) and strength == 0:
            return x
        change = self.linear(self._as_weights(x))
        if not self.training:
            change = change * strength
        return x + change.to(x.dtype)

    def _as_weights(self, x: Tensor) -> Tensor:
        """`x` in the weights' dtype, unless autocast decides."""
        weight = next(self.parameters(), x)
        return x if _is_autocast(x.device.type) else x.to(weight.dtype)


def _is_autocast(device: str) -> bool:
    """Whether autocast chooses dtypes on that device; torch refuses to say it of meta tensors."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _make(layer: Layer) -> nn.Module:
    match layer:
        case Layer("linear", (int(width_in), int(width_out))):
            return nn.Linear(width_in, width_out)
        case Layer("activation", str(name)):
            return make_activation(name)
        case Layer("norm", int(width)):
            return nn.LayerNorm(width)
        case Layer("dropout", float(probability) | int(probability)):
            return nn.Dropout(probability)
    raise AssertionError(layer)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw from `seed` and restore the global random state; None draws from that state."""
    if seed is None:
        yield
        return
    if not -(2**63) <= seed < 2**63:
        raise ModelError(f"seed must have at most 63 bits; found {shown(seed)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


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
        random = (nn.Dropout, nn.RReLU)
        self._has_dropout = any(isinstance(module, random) for module in self.modules())
        self.eval()

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
        return cls.of(config, seed=seed, name=name)

    @classmethod
    def of(cls, config: HypernetworkConfig, *, seed: int | None = None, name: str = "") -> Self:
        """The same of a structure that is described already."""
        with _seeded(seed):
            return cls(config, Provenance(name=name))

    def take_weights(self, other: "Hypernetwork") -> None:
        """Copy the weights of another one with the same layers, dropout aside: it shifts names."""
        weights = other.state_dict().values()
        self.load_state_dict(dict(zip(self.state_dict(), weights, strict=True)))

    @property
    def dims(self) -> tuple[int, ...]:
        """The context widths it has a pair for."""
        return self.config.dims

    @property
    def has_active_dropout(self) -> bool:
        """Whether calling it twice gives two results."""
        return self.training and self._has_dropout

    def module(self, dim: int, side: str) -> HypernetworkModule:
        """The module for contexts of width `dim`; `side` is "k" or "v"."""
        pair = self.pairs[str(dim)]
        assert isinstance(pair, nn.ModuleDict)
        module = pair[side]
        assert isinstance(module, HypernetworkModule)
        return module

    def describe(self, **changes: Any) -> None:
        """Set fields of the provenance, such as `step=500`."""
        self.provenance = replace(self.provenance, **changes)

    def forward(
        self, context_k: Tensor, context_v: Tensor, strength: Sides = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Rewrite the contexts (B, T, D) of keys and values; an unknown width passes unchanged."""
        dim = context_k.shape[-1]
        if dim not in self.dims:
            return context_k, context_v
        for_k, for_v = strength if isinstance(strength, tuple) else (strength, strength)
        return self.module(dim, "k")(context_k, for_k), self.module(dim, "v")(context_v, for_v)


def transform_context(context: Tensor, stack: Stack) -> tuple[Tensor, Tensor]:
    """What `to_k` and `to_v` read instead of `context` (B, T, D), after the whole stack."""
    context_k = context_v = context
    for net, strength in stack:
        context_k, context_v = net(context_k, context_v, strength)
    return context_k, context_v
