"""What describes a hypernetwork: its structure, layer by layer, and where it comes from."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from hn.errors import ModelError


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


class Layer(NamedTuple):
    """One layer of a module. `value`: (in, out) of linear, the name of activation, the width of
    norm, the probability of dropout.
    """

    kind: Literal["linear", "activation", "norm", "dropout"]
    value: tuple[int, int] | int | float | str


def layers(dim: int, config: HypernetworkConfig) -> Iterator[Layer]:
    """The layers of a module of width `dim`; a tensor's name counts every one of them.

    Linear, activation, LayerNorm, Dropout for each step, each where the config asks for it.
    """
    structure = config.layer_structure
    widths = [int(dim * multiplier) for multiplier in structure]
    for i, (width_in, width_out) in enumerate(pairwise(widths), start=1):
        last = i == len(structure) - 1
        yield Layer("linear", (width_in, width_out))
        if config.activation_func not in ("linear", None) and (not last or config.activate_output):
            yield Layer("activation", config.activation_func)
        if config.is_layer_norm:
            yield Layer("norm", width_out)
        if config.dropout_structure[i] > 0:
            yield Layer("dropout", config.dropout_structure[i])
