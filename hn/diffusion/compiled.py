"""The UNet's transformer and residual blocks, each compiled by itself, while training.

Never the whole UNet: compiled whole, torch 2.13 loses the gradients through its middle. Of single
blocks, too, its compiler has given wrong gradients, with right predictions and without a word: so
the first batch of every shape, for which blocks are compiled anyway, is also computed without.
Forwards without gradients (previews, held-out pictures) run as they were written.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from hn.errors import OptionError, meant, shown

REPEATED = (BasicTransformerBlock, ResnetBlock2D)
VARIANTS = 512  # of the code of a block: widths, layers, sizes, lengths of texts; torch stops at 8
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 3e-2}
"""How far a gradient may be off, as a share of its norm, by the UNet's precision."""


class CompiledBlocks:
    """Compiles a UNet's blocks when they are first called, and gives up where they err.

    `verdict` says how that went. Raises `OptionError` for a backend that torch does not know.
    """

    def __init__(self, unet: nn.Module, backend: str) -> None:
        _check_backend(backend)
        _prepare_compiler()
        self.verdict = "not used yet"
        self._worst = 0.0
        self._checked: set[Hashable] = set()
        self._active = True
        self._blocks = [module for module in unet.modules() if isinstance(module, REPEATED)]
        for block in self._blocks:
            block.forward = self._choosing(block.forward, backend)

    def check(self, shapes: Hashable, dtype: torch.dtype, gradient: Callable[[], Tensor]) -> None:
        """Compare the gradient of a batch with that without compiling, unless its shapes are known.

        Every process judges by itself: either way the same is computed, so none must agree.
        """
        if not self._blocks or shapes in self._checked:
            return
        from torch._dynamo.exc import TorchDynamoException  # slow to import

        self._checked.add(shapes)
        with self._paused():
            expected = gradient()
        try:
            with warnings.catch_warnings():
                # The compiler looks at tensors of the graph for gradients that none of them has.
                warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
                found = gradient()
        except TorchDynamoException as failure:
            self._give_up(f"the compiler fails: {str(failure).strip().splitlines()[0]}")
            return
        error = float((found - expected).norm() / expected.norm())  # GPU sync
        self._worst = max(self._worst, error)
        if error <= TOLERANCES[dtype]:
            self.verdict = f"used: gradients differ by {self._worst:.1e} of their norm at most"
        else:
            self._give_up(f"its gradient is off by {error:.1e} of the norm of that without it")

    def undo(self) -> None:
        """Run as written from now on."""
        for block in self._blocks:
            del block.forward
        self._blocks = []

    def _give_up(self, why: str) -> None:
        self.undo()
        self.verdict = f"not used: {why}"
        print(f"torch_compile is {self.verdict}; training goes on without")

    @contextmanager
    def _paused(self) -> Iterator[None]:
        self._active = False
        try:
            yield
        finally:
            self._active = True

    def _choosing(self, written: Callable[..., Any], backend: str) -> Callable[..., Any]:
        compiled = torch.compile(written, backend=backend, dynamic=False)

        def forward(*args: Any, **kwargs: Any) -> Any:
            chosen = compiled if self._active and torch.is_grad_enabled() else written
            return chosen(*args, **kwargs)

        return update_wrapper(forward, written)


def _check_backend(name: str) -> None:
    known = torch._dynamo.list_backends(exclude_tags=())
    if name not in known:
        raise OptionError(
            f"torch_compile_backend {shown(name)} is not known to torch{meant(name, known)}; it "
            f"knows {', '.join(known)}"
        )


def _prepare_compiler() -> None:
    """Let blocks have many variants, draw as without compiling, and leave out what errs."""
    from torch._inductor import config as inductor

    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * VARIANTS)
    inductor.fallback_random = True
    inductor.triton.mix_order_reduction = False  # wrong gradients: pytorch/pytorch#193061
