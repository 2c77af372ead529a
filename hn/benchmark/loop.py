"""What the loop of the training script costs beside the forward and backward passes within it.

It is the script's own `train`, with all that it calls, on the embedded demo: only its accelerator
is watched.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from statistics import median
from types import ModuleType
from typing import Any

from hn import cli, launch
from hn.training.watching.signals import Stop
from hn.training.watching.watch import Watch

WARM_UP = 5  # steps that do not count


@dataclass(frozen=True)
class Loop:
    """Seconds that the process computed, in each step, in its forward and backward pass, and in the
    optimizer's own update.
    """

    steps: list[float]
    passes: list[float]
    updates: list[float]

    @property
    def share(self) -> float:
        """Of a step, what is neither forward nor backward pass (median)."""
        both = zip(self.steps, self.passes, strict=True)
        return median(1 - passes / step for step, passes in both)

    @property
    def added(self) -> float:
        """Of a step, what is not the optimizer's update, either (median)."""
        parts = zip(self.steps, self.passes, self.updates, strict=True)
        return median(1 - (passes + update) / step for step, passes, update in parts)

    def __str__(self) -> str:
        return (
            f"the script's loop: {median(self.steps) * 1000:.1f} ms a step, "
            f"{self.share:.1%} of it beside the forward and backward passes, "
            f"{self.added:.1%} beside these and the optimizer's update"
        )


def measure(script: ModuleType, steps: int) -> Loop:
    """Train so many steps of one picture by `train` of the `script`."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = cli.parse(
            [
                *("--pretrained_model_name_or_path", "demo", "--train_data_dir", "demo"),
                *("--resolution", "64", "--max_train_steps", str(steps + WARM_UP + 1)),
                *("--output_dir", folder, "--report_to", "none", "--checkpointing_steps", "0"),
            ]
        )
        accelerator = launch.build_accelerator(config)
        clock = _Clock(accelerator)
        status = launch.build_run_folder(config, accelerator)
        config = launch.resolve(config, accelerator, status.folder)
        with Watch(accelerator, status, 0) as watch:
            script.train(config, accelerator, status, Stop(accelerator), watch)
        status.release()
    return clock.loop()


class _Clock:
    """Notes when the steps begin, and how long the passes and the update of each take."""

    def __init__(self, accelerator: Any) -> None:
        self._began: list[float] = []
        self._passes: list[float] = []
        self._updates: list[float] = []
        accelerator.prepare = self._hooked(accelerator.prepare)
        accelerator.backward = self._backward(accelerator.backward)

    def loop(self) -> Loop:
        """From the beginning of each step's forward pass to that of the next one's."""
        passes, updates = self._passes[WARM_UP:-1], self._updates[WARM_UP:-1]
        began = self._began[WARM_UP : WARM_UP + len(passes) + 1]
        return Loop([end - begin for begin, end in pairwise(began)], passes, updates)

    def _hooked(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(prepare)
        def prepare_and_hook(module: Any, optimizer: Any) -> Any:
            module.register_forward_pre_hook(lambda *_: self._began.append(time.process_time()))
            optimizer.register_step_pre_hook(lambda *_: self._updates.append(-time.process_time()))
            optimizer.register_step_post_hook(lambda *_: self._add(time.process_time()))
            return prepare(module, optimizer)

        return prepare_and_hook

    def _add(self, seconds: float) -> None:
        self._updates[-1] += seconds

    def _backward(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def backward_and_note(loss: Any, **options: Any) -> None:
            backward(loss, **options)
            self._passes.append(time.process_time() - self._began[-1])

        return backward_and_note
