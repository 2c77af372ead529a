"""What each part of a UNet keeps for the backward pass, and what computing it again would take."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hn.benchmark.memory import PeakMemory
from hn.diffusion.memory.plan import Plan, blocks_of, gates_of
from hn.diffusion.memory.rehearsal import Step, inputs, rehearsal


@dataclass(frozen=True)
class Cost:
    """Bytes that are `freed` if a part keeps its input only, and the `operations` done again."""

    freed: int
    operations: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.freed + other.freed, self.operations + other.operations)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.freed - other.freed, self.operations - other.operations)

    @property
    def worth(self) -> float:
        """Bytes for an operation: what is computed again first has most."""
        return self.freed / max(self.operations, 1)


def measure(step: Step) -> dict[str, Cost]:
    """The cost of every gate and block, by name, in a step with frozen-aware layers."""
    with rehearsal(step, Plan(frozen_aware=True)) as denoiser, ExitStack() as watching:
        unet = denoiser.unet
        parts = _Parts(unet, sorted(gates_of(unet) | blocks_of(unet)), watching)
        watching.enter_context(PeakMemory())  # for its attention
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        counter = FlopCounterMode(display=False, custom_mapping={attention: _attention})
        watching.enter_context(counter)
        denoiser(*inputs(step, unet))
    operations = {
        name.partition(".")[2]: sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
    }
    return {
        name: Cost(max(parts.kept[name] - parts.given[name], 0), operations.get(name, 0))
        for name in parts.kept
    }


class _Parts:
    """Notes the bytes that each part is `given` and those `kept` of what it computes."""

    def __init__(self, unet: nn.Module, names: list[str], watching: ExitStack) -> None:
        self.kept = dict.fromkeys(names, 0)
        self.given = dict.fromkeys(names, 0)
        self._within: list[str] = []
        self._seen: list[Tensor] = []  # held, so that no other storage takes their place
        self._known: set[int] = {p.untyped_storage()._cdata for p in unet.parameters()}
        for name in names:
            part = unet.get_submodule(name)
            for hook in (self._enter(part, name), self._leave(part)):
                watching.callback(hook.remove)
        watching.enter_context(saved_tensors_hooks(self._note, lambda kept: kept))

    def _enter(self, part: nn.Module, name: str) -> Any:
        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._within.append(name)
            self.given[name] = args[0].nbytes

        return part.register_forward_pre_hook(enter)

    def _leave(self, part: nn.Module) -> Any:
        return part.register_forward_hook(lambda *_: self._within.pop() and None)

    def _note(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in self._known:
            self._known.add(key)
            self._seen.append(tensor)
            for name in self._within:
                self.kept[name] += tensor.untyped_storage().nbytes()
        return tensor


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)
