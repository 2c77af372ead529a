"""How many operations the host starts, and how often it waits for a number that the device has.

    with Ops("cuda") as ops:
        step()
    print(ops.count, ops.syncs)

Run for a CPU, it counts what would wait for a GPU, if the computation were there.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parent.parent.parent
OPTIMIZERS = Path(torch.optim.__file__).parent
# Their results are numbers, or tensors whose shape depends on numbers.
_READING = {
    "aten._local_scalar_dense",  # item, float, bool
    "aten.equal",
    "aten.masked_select",
    "aten.nonzero",
    "aten._unique2",
}
# Those copy to the host without an operation that the dispatcher would see, where this is a CPU.
_LEAVING = (Tensor.tolist, Tensor.cpu, Tensor.numpy)


class Ops:
    """Counts the operations started meanwhile (`count`), in the backward pass, too.

    `syncs` has a line for each time that the host waited for that `device`, to read a tensor or to
    copy one there or back: what did so, and where in this project.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.syncs: list[str] = []
        self._device = torch.device(device).type
        self._modes = ExitStack()

    def __enter__(self) -> Self:
        self._modes.enter_context(_Leaving(self))
        self._modes.enter_context(_Dispatched(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._modes.close()

    def is_there(self, arguments: Sequence[Any]) -> bool:
        """Whether one of these is a tensor of the device."""
        tensors = (leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))
        return any(tensor.device.type == self._device for tensor in tensors)

    def note(self, name: str) -> None:
        """Note that the host waits."""
        if (place := _place()) is not None:
            self.syncs.append(f"{name} at {place}")


class _Dispatched(TorchDispatchMode):
    """Counts what the dispatcher sees."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self._ops = ops

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._ops.count += 1
        name = str(func.overloadpacket)
        reads = name in _READING or _selects(name, args)
        if _crosses(name, args, kwargs) or (reads and self._ops.is_there(args)):
            self._ops.note(name)
        return func(*args, **kwargs)


class _Leaving(TorchFunctionMode):
    """Sees what takes a tensor to the host by a call in Python."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self._ops = ops

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _LEAVING and args[0].device.type == "cpu" and self._ops.is_there(args[:1]):
            self._ops.note(func.__name__)
        return func(*args, **(kwargs or {}))


def _selects(name: str, args: tuple[Any, ...]) -> bool:
    """Whether this indexes by truth, which the host must count first."""
    if name not in ("aten.index", "aten.index_put_"):
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


def _crosses(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this copies between host and device, and waits until that is done."""
    if name == "aten._to_copy":
        source, target = args[0].device, kwargs.get("device")
        waits = not kwargs.get("non_blocking", False)
    elif name == "aten.copy_":
        source, target = args[1].device, args[0].device
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    else:
        return False
    kinds = {source.type, source.type if target is None else torch.device(target).type}
    return waits and len(kinds) == 2


def _place() -> str | None:
    """The innermost line of this project's own that led here.

    None for an optimizer's count of its steps, which is on the host wherever the weights are.
    """
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent == OPTIMIZERS:
            return None
        if path.is_relative_to(ROOT) and path != Path(__file__):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
