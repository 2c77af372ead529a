"""What a hypernetwork file says, in the file's own precision and order; what is written again
without loss.

`Hypernetwork` computes, in float32; `Contents` is what is read, converted, inspected and written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from hn.errors import ModelError, shown
from hn.network.description import HypernetworkConfig, Provenance
from hn.network.module import Hypernetwork

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_READABLE = (*DTYPES.values(), torch.float64)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Description and tensors of one file.

    `tensors` have names such as `768.k.linear.0.weight`. `values`: the file's named values as they
    are stored, where other hosts read them otherwise than we do; empty for what was not read from
    a `.pt`.
    """

    config: HypernetworkConfig
    provenance: Provenance
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, net: Hypernetwork) -> Self:
        """The contents of a hypernetwork, sharing its tensors."""
        tensors = {key: tensor.detach() for key, tensor in net.tensors().items()}
        return cls(config=net.config, provenance=net.provenance, tensors=tensors)

    def check(self) -> Self:
        """Refuse tensors that are missing, unknown, misshapen or no plain numbers.

        Allocates nothing. Raises `ModelError` naming the first five.
        """
        expected = skeleton(self.config).tensors()
        faults = [f"{key} is missing" for key in expected if key not in self.tensors]
        faults += [
            f"{shown(key)} is not part of this structure"
            for key in self.tensors
            if key not in expected
        ]
        faults += [
            f"{key} has the shape {tuple(self.tensors[key].shape)}, not {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in self.tensors and self.tensors[key].shape != tensor.shape
        ]
        faults = faults or [
            f"{key} {fault}" for key, t in self.tensors.items() if (fault := tensor_fault(t))
        ]
        _raise(faults, "the weights do not fit the described structure")
        return self

    def build(self) -> Hypernetwork:
        """The hypernetwork, in float32; draws no random numbers. Raises `ModelError` for NaN."""
        _raise([f"{key} holds NaN or infinity" for key in self.spoilt], "the weights are spoilt")
        net = skeleton(self.config, self.provenance)
        weights = {
            f"pairs.{key}": tensor.detach().clone()
            for key, tensor in self.to(torch.float32).tensors.items()
        }
        net.load_state_dict(weights, assign=True)
        return net

    @property
    def spoilt(self) -> list[str]:
        """The tensors that hold NaN or infinity."""
        return [key for key, tensor in self.tensors.items() if not tensor.isfinite().all()]

    def packed(self) -> dict[str, Tensor]:
        """The tensors in the modules' order, on the CPU, each with a storage of its own size."""
        names = skeleton(self.config).tensors()
        return {key: self.tensors[key].detach().cpu().contiguous().clone() for key in names}

    def to(self, dtype: torch.dtype) -> Self:
        """The same in another precision. Raises `ModelError` for weights that it cannot hold."""
        cast = replace(self, tensors={key: t.to(dtype) for key, t in self.tensors.items()})
        _raise(
            [
                f"{key} reaches {self.tensors[key].abs().max():.3g}"
                for key in cast.spoilt
                if key not in self.spoilt
            ],
            f"the weights do not fit into {dtype}; bf16 and fp32 reach 3.4e38",
        )
        return cast

    def described(self, **changes: Any) -> Self:
        """With other fields of the provenance, such as `step=500`."""
        return replace(self, provenance=replace(self.provenance, **changes))

    def with_dropout(self, structure: tuple[float, ...] = ()) -> Self:
        """With this dropout structure, or none: tensors keep their values and get new numbers.

        ComfyUI draws dropout while it paints; without it every host computes the same.
        """
        return self.with_config(dropout_structure=structure, use_dropout=any(structure))

    def with_config(self, **changes: Any) -> Self:
        """Described otherwise, tensors renamed; the layers that hold tensors must stay the same."""
        config = replace(self.config, **changes)
        before, after = skeleton(self.config).tensors(), skeleton(config).tensors()
        names = dict(zip(before, after, strict=True))
        tensors = {names[key]: self.tensors[key] for key in before}
        return replace(self, config=config, tensors=tensors, values=MappingProxyType({}))


def tensor_fault(tensor: Tensor) -> str | None:
    """What a hostile or spoilt file may hold, found before anything is allocated for it."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _READABLE:
        return f"is no plain tensor of numbers ({tensor.dtype}, {tensor.layout})"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"claims {tensor.numel()} numbers, more than the file holds"
    return None


def skeleton(config: HypernetworkConfig, provenance: Provenance | None = None) -> Hypernetwork:
    """The hypernetwork without memory for its weights: names and shapes."""
    with torch.device("meta"):
        return Hypernetwork(config, provenance, draw_weights=False)


def _raise(faults: list[str], headline: str) -> None:
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ModelError(f"{headline}: " + "; ".join(faults[:5]) + more)
