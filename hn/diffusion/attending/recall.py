"""What was read of a text, for the other steps of its denoising.

Denoising shows a UNet the same text in every step. What is made of it is kept, with all that it was
made of: the text itself (held, so that nothing else can lie where it does), the stack, the weights,
the precision. Each tensor is known by its place and by its version, which rises with every change
in place; tensors of inference mode have none, so nothing is kept of them. Two kinds of changes
leave no trace in a version: those of a fused optimizer, whose step makes all be forgotten, and what
is written through `.data`, after which `forget` must be called.
"""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from hn.diffusion.attending.processor import Reading
from hn.diffusion.attending.projections import Linears

KEPT = 2  # texts: samplers that guide in two calls show two in turn


@dataclass(frozen=True, eq=False)
class Ingredients:
    """All that a reading is made of: `things` by identity, `numbers` by value, and the text."""

    text: Tensor
    things: Sequence[Any]
    numbers: Sequence[Any]

    def is_like(self, other: "Ingredients") -> bool:
        """Whether the same would be made of them."""
        return self.numbers == other.numbers and all(
            mine is theirs for mine, theirs in zip(self.things, other.things, strict=True)
        )


class Recall:
    """Keeps the newest readings, until any of their ingredients changes."""

    def __init__(self) -> None:
        self._kept: list[tuple[Ingredients, Reading]] = []

    def find(self, ingredients: Ingredients) -> Reading | None:
        """The reading that was made of the same, if it is kept."""
        for kept, reading in self._kept:
            if kept.is_like(ingredients):
                return reading
        return None

    def keep(self, ingredients: Ingredients, reading: Reading) -> None:
        """Keep it until there are newer ones, an optimizer steps, or `forget`."""
        _KEEPING.add(self)
        self._kept = [*self._kept[1 - KEPT :], (ingredients, reading)]

    def forget(self) -> None:
        """Let go of all."""
        self._kept = []


_KEEPING: weakref.WeakSet[Recall] = weakref.WeakSet()


def _forget_all(*_: Any) -> None:
    for recall in list(_KEEPING):
        recall.forget()


# Once and for good: torch walks through its hooks after every step, so none must come or go then.
register_optimizer_step_post_hook(_forget_all)


def list_ingredients(text: Tensor, bare: Reading, linears: Linears) -> Ingredients | None:
    """What a reading of the text (B, T, D) is made of; None if it must not be kept.

    That is where gradients are wanted, where a strength is a tensor (it changes), where a hook
    wants to see every call, and where tensors have no version.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    stacks = list(bare.stacks.values())
    used = [pairs for stack in stacks for pairs, _ in stack]
    dim = text.shape[-1]
    read = [module for pairs in dict.fromkeys(used) for module in pairs.pair(dim).values()]
    modules = [module for top in read for module in top.modules()]
    if any(pairs.training for pairs in used) or any(_is_watched(module) for module in modules):
        return None
    strengths = [[strength for _, strength in stack] for stack in stacks]
    if not all(_is_number(strength) for some in strengths for strength in some):
        return None
    weights = [
        *(weight for module in modules for weight in module._parameters.values()),
        *(linear.weight for pair in linears.values() for linear in pair),
    ]
    tensors = [text, *(weight for weight in weights if weight is not None)]
    if not all(_has_version(tensor) for tensor in tensors):
        return None
    things = [*used, *modules, *(linear for pair in linears.values() for linear in pair), *weights]
    numbers = [len(things), strengths, bare.precision, *_traces(text, tensors)]
    return Ingredients(text, things, numbers)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_number(strength: Any) -> bool:
    sides = strength if isinstance(strength, tuple) else (strength,)
    return not any(isinstance(side, Tensor) for side in sides)


def _has_version(tensor: Tensor) -> bool:
    ours = type(tensor) in (Tensor, nn.Parameter)
    return ours and tensor.device.type != "meta" and not tensor.is_inference()


def _traces(text: Tensor, tensors: Iterable[Tensor]) -> list[Any]:
    """Where the tensors are, and at which version; how the text is read, and how is computed."""
    kind = text.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    layout = text.shape, text.stride(), text.dtype, text.device
    return [layout, precision, [(tensor.data_ptr(), tensor._version) for tensor in tensors]]
