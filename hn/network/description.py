"""What describes a hypernetwork: its structure, layer by layer, and where it comes from."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from hn.errors import ModelError, printable, shown
from hn.network.reach import SidesTrained, check_reach

# Far above any real file, and low enough that a hostile one costs neither time nor memory.
MAX_DIM = 2**20
MAX_MULTIPLIER = 1000
MAX_ENTRIES = 64
MAX_STEP = 2**53
_OF_REACH = ("sides", "blocks", "block_dims", "complete")


@dataclass(frozen=True, kw_only=True)
class HypernetworkConfig:
    """What the modules look like. Field names are those of the web UI's files.

    `dims`: context widths, in file order. `layer_structure`: width multipliers from input to
    output, starting and ending with 1. `activation_func`: a web UI name, see `activations.NAMES`;
    None is linear. `dropout_structure`: one probability for each entry of `layer_structure` (the
    first is never used). `use_dropout` is information for other hosts: what is built follows
    `dropout_structure` alone.

    What only our own files say, see `reach`: which `sides` have modules; in which `blocks` of the
    UNet they are read through (none: everywhere); of which widths each block has modules of its
    own (`block_dims`, none: all share those of `dims`); and whether the UNet has no attention of
    these widths in other blocks (`complete`).
    """

    dims: tuple[int, ...]
    layer_structure: tuple[float, ...] = (1, 2, 1)
    activation_func: str | None = "linear"
    weight_initialization: str = "identity"
    is_layer_norm: bool = False
    activate_output: bool = False
    use_dropout: bool = False
    dropout_structure: tuple[float, ...] = ()
    sides: SidesTrained = "both"
    blocks: tuple[str, ...] = ()
    block_dims: tuple[tuple[int, ...], ...] = ()
    complete: bool = False

    def __post_init__(self) -> None:
        if not self.dropout_structure:
            object.__setattr__(self, "dropout_structure", (0,) * len(self.layer_structure))
        self._check_widths()
        self._check_dropout()
        self._check_words()
        check_reach(self.dims, self.sides, self.blocks, self.block_dims, self.complete)
        if any(self.dropout_structure) and not self.use_dropout:
            object.__setattr__(self, "use_dropout", True)

    def _check_widths(self) -> None:
        dims, structure = self.dims, self.layer_structure
        if not _numbers(dims, 1, MAX_DIM, int) or not dims or len(set(dims)) != len(dims):
            raise ModelError(
                f"dims must be different positive widths, such as (320, 768); found {shown(dims)}"
            )
        if not _numbers(structure, 0, MAX_MULTIPLIER):
            raise ModelError(
                f"layer_structure must be multipliers from 0 to {MAX_MULTIPLIER}, at most "
                f"{MAX_ENTRIES}, such as (1, 2, 1); found {shown(structure)}"
            )
        if not structure or structure[0] != 1 or structure[-1] != 1:
            raise ModelError(
                "layer_structure must start and end with 1, such as (1, 2, 1); found "
                f"{shown(structure)}"
            )

    def _check_dropout(self) -> None:
        structure, dropout = self.layer_structure, self.dropout_structure
        if not _numbers(dropout, -MAX_MULTIPLIER, MAX_MULTIPLIER) or any(
            p >= 1 for p in dropout[1 : len(structure)]
        ):
            raise ModelError(
                "dropout_structure holds probabilities of at least 0, below 1; found "
                f"{shown(dropout)}"
            )
        if len(dropout) < len(structure):
            raise ModelError(
                f"dropout_structure needs one probability for each of the {len(structure)} entries "
                f"of layer_structure {shown(structure)}; found {shown(dropout)}"
            )

    def _check_words(self) -> None:
        for name in ("activation_func", "weight_initialization"):
            word = getattr(self, name)
            if word is None and name == "activation_func":
                continue
            if not isinstance(word, str) or not word.isprintable() or len(word) > 100:
                raise ModelError(f"{name} must be a name, such as relu; found {shown(word)}")
        for name in ("is_layer_norm", "activate_output", "use_dropout"):
            if not isinstance(getattr(self, name), bool):
                raise ModelError(
                    f"{name} must be true or false; found {shown(getattr(self, name))}"
                )

    @property
    def last_layer_dropout(self) -> bool:
        """Whether the last hidden layer has dropout, as the web UI derives it when it saves."""
        return len(self.dropout_structure) > 1 and self.dropout_structure[-2] != 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The sides that have modules: k, v, or both."""
        return ("k", "v") if self.sides == "both" else (self.sides,)

    @property
    def is_everywhere(self) -> bool:
        """Whether it is what every host knows: both sides, in all of the UNet."""
        return self.sides == "both" and not self.blocks

    @property
    def reach(self) -> str:
        """Where it is read, such as `k only, in down.1, mid`; nothing for everywhere."""
        words = [] if self.sides == "both" else [f"{self.sides} only"]
        if self.blocks:
            own = ", each with its own" if self.block_dims else ""
            words.append(f"in {', '.join(self.blocks)}{own}")
        return ", ".join(words)

    def as_dict(self) -> dict[str, Any]:
        """Its fields by name; those of `reach` only where they differ from everywhere.

        So files and checkpoints of hypernetworks that are everywhere stay as they always were.
        """
        default = type(self)(dims=self.dims)
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in _OF_REACH or value != getattr(default, name)
        }


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a hypernetwork comes from: information that no host computes with.

    Texts are shown and never used as a path; what could steer a terminal becomes a question mark.
    """

    name: str = ""
    step: int = 0
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    optional_info: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.step, int) or not 0 <= self.step < MAX_STEP:
            raise ModelError(f"step must be a number of steps; found {shown(self.step)}")
        for name in ("name", "sd_checkpoint", "sd_checkpoint_name", "optional_info"):
            text = getattr(self, name)
            if isinstance(text, str):
                breaks = "\n\t" if name == "optional_info" else ""
                object.__setattr__(self, name, printable(text, breaks))
            elif text is not None or name == "name":
                raise ModelError(f"{name} must be text; found {shown(text)}")


class Layer(NamedTuple):
    """One layer of a module. `value`: (in, out) of linear, the name of activation, the width of
    norm, the probability of dropout.
    """

    kind: Literal["linear", "activation", "norm", "dropout"]
    value: tuple[int, int] | int | float | str


def _numbers(
    values: Any, low: float, high: float, kind: type | tuple[type, ...] = (int, float)
) -> bool:
    """Whether `values` is a tuple of few numbers from `low` to `high`; NaN is none."""
    return (
        isinstance(values, tuple)
        and len(values) <= MAX_ENTRIES
        and all(isinstance(value, kind) and low <= value <= high for value in values)
    )


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
