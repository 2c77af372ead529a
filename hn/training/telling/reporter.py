"""What is seen of a run: one progress bar, `metrics.jsonl`, the web UI's CSV, and accelerate's
trackers.
"""

import csv
import json
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hn.training.state import TrainingState
from hn.training.telling.trackers import Tracker

CSV_COLUMNS = ("step", "epoch", "epoch_step", "loss", "learn_rate")


class Reporter:
    """Collects losses on their device and looks at them once every `logging_steps`.

    `pictures` is None for a stream whose length nobody knows. `counts`: what else each process
    counts, by name; reported as sums over all of them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        *,
        every: int,
        first_step: int,
        last_step: int,
        pictures: int | None,
        global_batch: int,
        counts: Callable[[], dict[str, int]] = dict,
    ) -> None:
        self._accelerator = accelerator
        self._folder = folder
        self._every = every
        self._pictures = pictures
        self._global_batch = global_batch
        self._counts = counts
        self._losses: list[Tensor] = []
        self._newest: list[Tensor] = []  # of the step that is not finished
        self._since = (first_step, time.monotonic())
        self._main = accelerator.is_main_process
        self._bar = tqdm(
            total=last_step,
            initial=first_step,
            desc="training",
            unit="step",
            disable=not self._main,
        )
        if self._main:
            _forget_after(folder / "metrics.jsonl", first_step)
            _forget_csv_after(folder / "hypernetwork_loss.csv", first_step)

    def add(self, loss: Tensor) -> None:
        """Note the loss of a micro-batch; nothing waits for the device."""
        self._newest.append(loss.detach())

    def __call__(self, state: TrainingState, rate: float, gradient_norm: Tensor | None) -> None:
        """Report a finished step, if it is due; of one that was skipped there is no norm."""
        self._bar.update()
        if gradient_norm is not None:
            self._losses += self._newest
        self._newest.clear()
        if state.step % self._every:
            return
        learnt = {} if gradient_norm is None else {"gradient_norm": float(gradient_norm)}
        if self._losses:
            mean: Any = self._accelerator.reduce(torch.stack(self._losses).mean(), "mean")
            learnt = {"loss": mean.item(), "learning_rate": rate, **learnt}  # GPU sync
            self._csv_row(state.step, learnt["loss"], rate)
        self._losses.clear()
        scalars = {
            **learnt,
            "images_per_second": self._speed(state.step),
            "peak_memory_mib": peak_memory_mib(),
            **state.health.counts(),
            **self._totals(),
        }
        self._bar.set_postfix_str(
            f"loss {learnt.get('loss', math.nan):.4f}, lr {rate:.2e}, "
            f"{scalars['images_per_second']:.1f} images/s, peak "
            f"{scalars['peak_memory_mib']:.0f} MiB"
        )
        self.scalars(scalars, state.step)

    def rewind(self, step: int) -> None:
        """The run went back to this step: forget what comes after it."""
        self._losses.clear()
        self._newest.clear()
        self._since = (step, time.monotonic())
        self._bar.n = step
        self._bar.refresh()
        if self._main:
            _forget_after(self._folder / "metrics.jsonl", step)
            _forget_csv_after(self._folder / "hypernetwork_loss.csv", step)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write numbers of a step to `metrics.jsonl` and the trackers."""
        if self._main:
            with open(self._folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self._accelerator.log(values, step=step)

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        """Show a picture in the trackers."""
        for tracker in self._trackers:
            tracker.picture(tag, picture, step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Show in the trackers how `values` (N,) are distributed."""
        for tracker in self._trackers:
            tracker.histogram(tag, values, step)

    def close(self) -> None:
        """End the bar, and say what was counted. The trackers end with the processes' group."""
        self._bar.close()
        totals = ", ".join(f"{name} {number}" for name, number in self._totals().items())
        if totals:
            self._accelerator.print(totals.replace("_", " "))

    @property
    def _trackers(self) -> list[Tracker]:
        """Those of this process: the main process has them."""
        return cast("list[Tracker]", self._accelerator.trackers)

    def _totals(self) -> dict[str, int]:
        """The counts of all processes together."""
        counts = self._counts()
        if not counts:
            return {}
        numbers = torch.tensor(list(counts.values()), device=self._accelerator.device)
        total: Any = self._accelerator.reduce(numbers, "sum")
        return dict(zip(counts, total.tolist(), strict=True))  # GPU sync

    def _speed(self, step: int) -> float:
        """Images per second since the last report."""
        (before, then), now = self._since, time.monotonic()
        self._since = (step, now)
        return (step - before) * self._global_batch / max(now - then, 1e-9)

    def _csv_row(self, step: int, loss: float, rate: float) -> None:
        """A row with the web UI's columns; its epochs are whole passes over the pictures.

        All of a stream is one epoch: where the next one begins differs between processes.
        """
        if not self._main:
            return
        path = self._folder / "hypernetwork_loss.csv"
        epoch, epoch_step = 0, step - 1
        if self._pictures is not None:
            epoch, epoch_step = divmod(step - 1, max(1, self._pictures // self._global_batch))
        new = not path.exists()
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(CSV_COLUMNS)
            writer.writerow([step, epoch, epoch_step, f"{loss:.7f}", rate])


def peak_memory_mib() -> float:
    """Peak memory: of the GPU where there is one, else of the process (Linux counts it in KiB)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    """The step of a line of `metrics.jsonl`; infinite for one that a crash cut short."""
    try:
        row: Any = json.loads(line)
        return row["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _forget_csv_after(path: Path, step: int) -> None:
    if path.exists():
        header, *lines = path.read_text(encoding="utf-8").splitlines() or [",".join(CSV_COLUMNS)]
        kept = [
            line
            for line in lines
            if line.split(",")[0].isdigit() and int(line.split(",")[0]) <= step
        ]
        path.write_text("".join(f"{line}\n" for line in [header, *kept]), encoding="utf-8")
