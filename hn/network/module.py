"""Residual MLPs that rewrite attention contexts: one (k, v) pair for each context width.

A context `x` (B, T, D) becomes `x + strength * mlp(x)` before `to_k`, and with another MLP before
`to_v`. The mathematics, the layer order and the order in which random numbers are drawn are those
of the AUTOMATIC1111 web UI, so its files compute the same here and a seed gives the same initial
weights as there. Beyond it, a side may be left out, and blocks of the UNet may have modules of
their own (`reach`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from hn.errors import ModelError, shown
from hn.network.activations import make_activation
from hn.network.description import HypernetworkConfig, Layer, Provenance, layers
from hn.network.initialisers import initialise
from hn.network.reach import SidesTrained, covers

Amount = float | Tensor
"""A strength; one that changes while denoising is a tensor (), so that nothing waits for it."""
Sides = Amount | tuple[Amount, Amount]
"""One strength for keys and values, or one for each."""
Stack = Sequence[tuple["Pairs | Hypernetwork", Sides]]
"""Pairs (or hypernetworks with one pair for each width) with their strengths, in the order in which
they are applied."""


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


class Pairs(nn.ModuleDict):
    """The modules of some context widths, {width: {side: module}}; a side may be left out."""

    def __init__(
        self, dims: Sequence[int], config: HypernetworkConfig, *, draw_weights: bool = True
    ) -> None:
        super().__init__(
            {
                str(dim): nn.ModuleDict(
                    {
                        side: HypernetworkModule(dim, config, draw_weights=draw_weights)
                        for side in config.kinds
                    }
                )
                for dim in dims
            }
        )

    def pair(self, dim: int) -> Mapping[str, HypernetworkModule]:
        """The modules for contexts of a width by side; none for a width that it does not know."""
        pair: Any = self._modules.get(str(dim))  # annotations know no module of a dict of these
        return {} if pair is None else pair._modules

    def forward(
        self, context_k: Tensor, context_v: Tensor, strength: Sides = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Rewrite contexts (B, T, D) for keys and values; what has no module passes unchanged."""
        pair = self.pair(context_k.shape[-1])
        for_k, for_v = strength if isinstance(strength, tuple) else (strength, strength)
        if "k" in pair:
            context_k = pair["k"](context_k, for_k)
        if "v" in pair:
            context_v = pair["v"](context_v, for_v)
        return context_k, context_v


class Part(NamedTuple):
    """One module of a hypernetwork; `block` is "" where all blocks share it."""

    block: str
    dim: int
    side: str
    module: HypernetworkModule

    @property
    def name(self) -> str:
        """What its tensors' names begin with, such as `768.k` or `down_1.768.k`."""
        return ".".join(filter(None, (_key(self.block), str(self.dim), self.side)))


def _key(block: str) -> str:
    """A block's name in the names of tensors, where a point would begin another module."""
    return block.replace(".", "_")


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
        self.pairs = (
            nn.ModuleDict(
                {
                    _key(block): Pairs(dims, config, draw_weights=draw_weights)
                    for block, dims in zip(config.blocks, config.block_dims, strict=True)
                }
            )
            if config.block_dims
            else Pairs(config.dims, config, draw_weights=draw_weights)
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
        sides: SidesTrained = "both",
        blocks: Sequence[str] = (),
        seed: int | None = None,
        name: str = "",
    ) -> Self:
        """Make a new hypernetwork, at step 0.

        With `weight_initialization="identity"`, the default, it starts as the base model. With a
        `seed` its weights are reproducible (and the global random state is left alone). `sides` and
        `blocks` limit which layers read through it (`reach`). Raises `ModelError` for what cannot
        be built.
        """
        config = HypernetworkConfig(
            dims=tuple(dims),
            layer_structure=tuple(layer_structure),
            activation_func=activation_func,
            weight_initialization=weight_initialization,
            is_layer_norm=is_layer_norm,
            activate_output=activate_output,
            dropout_structure=tuple(dropout_structure or ()),
            sides=sides,
            blocks=tuple(blocks),
        )
        return cls.drawn(config, seed, name)

    @classmethod
    def drawn(cls, config: HypernetworkConfig, seed: int | None, name: str = "") -> Self:
        """A new one as described, as `create` makes it. Raises `ModelError` likewise."""
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

    def parts(self) -> Iterator[Part]:
        """All its modules, in the order of their parameters."""
        homes = zip(self.config.blocks, self.pairs.values(), strict=True)
        for block, pairs in homes if self.config.block_dims else [("", self.pairs)]:
            assert isinstance(pairs, Pairs)
            for dim in map(int, pairs):
                for side, module in pairs.pair(dim).items():
                    yield Part(block, dim, side, module)

    @property
    def shared(self) -> Pairs:
        """The modules that all blocks share. Raises `ModelError` where each has its own."""
        if not isinstance(self.pairs, Pairs):
            raise ModelError(
                f"{self.provenance.name or 'the hypernetwork'} has modules of its own for each of "
                f"{', '.join(self.config.blocks)}: attach it to a UNet, or take those `at` a place"
            )
        return self.pairs

    def pair(self, dim: int) -> Mapping[str, HypernetworkModule]:
        """The shared modules for contexts of width `dim`, by side."""
        return self.shared.pair(dim)

    def module(self, dim: int, side: str) -> HypernetworkModule:
        """The shared module for contexts of width `dim`; `side` is "k" or "v"."""
        return self.pair(dim)[side]

    def at(self, place: str) -> Pairs | None:
        """What is read through at a place of the UNet, such as `down.1.0`; None for nothing."""
        if not self.config.blocks:
            return self.shared
        block = next((it for it in self.config.blocks if covers(it, place)), None)
        if block is None:
            return None
        own = self.pairs[_key(block)] if self.config.block_dims else self.shared
        assert isinstance(own, Pairs)
        return own

    def describe(self, **changes: Any) -> None:
        """Set fields of the provenance, such as `step=500`."""
        self.provenance = replace(self.provenance, **changes)

    def forward(
        self, context_k: Tensor, context_v: Tensor, strength: Sides = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Rewrite the contexts (B, T, D) of keys and values by the shared modules."""
        return self.shared(context_k, context_v, strength)


def transform_context(context: Tensor, stack: Stack) -> tuple[Tensor, Tensor]:
    """What `to_k` and `to_v` read instead of `context` (B, T, D), after the whole stack."""
    context_k = context_v = context
    for net, strength in stack:
        context_k, context_v = net(context_k, context_v, strength)
    return context_k, context_v
