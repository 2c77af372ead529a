"""How much memory a computation holds, counted from the life of every tensor's storage.

    with PeakMemory() as held:
        loss(unet(noisy)).backward()
    print(held.saved, held.peak)

On meta tensors nothing is computed and nothing is held, and the count is the same, so a Stable
Diffusion is counted in seconds on any machine. Work space within a kernel is not seen.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, UntypedStorage
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory:
    """Counts the bytes of the storages that are made meanwhile, as long as each lives.

    `peak`: the most that was held at once. `saved`: what was held when the backward pass began
    (without one, at the end), so that includes whatever else the forward pass left behind. What was
    there before (weights, inputs, gradients that are accumulated into) does not count.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._held = 0
        self._saved: int | None = None
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}
        self._modes = ExitStack()

    @property
    def saved(self) -> int:
        """Bytes held when the backward pass began."""
        return self._held if self._saved is None else self._saved

    def __enter__(self) -> Self:
        self._modes.enter_context(_fused_on_meta())
        self._modes.enter_context(_Storages(self._begin, self._end))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._modes.close()
        self._saved = self.saved

    def _begin(self, tensors: Sequence[Tensor]) -> None:
        """Before an operation: its inputs were there, or are counted already."""
        if self._saved is None and torch._C._current_autograd_node() is not None:
            self._saved = self._held
        for tensor in tensors:
            self._take(tensor.untyped_storage(), counted=False)

    def _end(self, tensors: Sequence[Tensor]) -> None:
        """After an operation: what it returns may be new."""
        for tensor in tensors:
            self._take(tensor.untyped_storage(), counted=True)
        self.peak = max(self.peak, self._held)

    def _take(self, storage: UntypedStorage, *, counted: bool) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counted else 0
        self._held += size

        def forget(_: Any) -> None:
            self._held -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, forget)


class _Storages(TorchDispatchMode):
    """Tells what goes into every operation and what comes out."""

    def __init__(
        self,
        begin: Callable[[Sequence[Tensor]], None],
        end: Callable[[Sequence[Tensor]], None],
    ) -> None:
        super().__init__()
        self._begin = begin
        self._end = end

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._begin(_tensors((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        self._end(_tensors(result))
        return result


@contextmanager
def _fused_on_meta() -> Iterator[None]:
    """Attention by a fused kernel also on meta tensors, for which torch would choose plain products
    that hold every score. Not a mode: those are off within the backward pass, which recomputes.
    """
    plain = F.scaled_dot_product_attention
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if query.device.type != "meta":
            return plain(query, key, value, **options)
        return fused(query, key, value, attn_mask=options.get("attn_mask"))[0]

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
