"""Accelerate's trackers, so that none of them can stop a run: what one does not take is counted and
said, and the training goes on.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hn.data.tally import Tally
from hn.errors import OptionError, printable

FINAL = ("heldout_gain", "heldout_loss", "loss")  # by which TensorBoard compares runs
PROJECT = "hn"  # of wandb, unless WANDB_PROJECT says another
Settings = dict[str, bool | int | float | str]


class Tracker(GeneralTracker):
    """One of accelerate's trackers, `inner`, which may fail."""

    requires_logging_directory = False

    def __init__(self, name: str, inner: Any) -> None:
        self.name = name
        self.inner = inner
        self.failures = 0
        self.tally = Tally()
        self._started = False
        super().__init__()

    @property
    def tracker(self) -> Any:
        """What the package calls its writer or run."""
        return self.inner.tracker

    def start(self) -> None:
        """Open it. If that fails, all that is reported later counts as failed."""
        self._started = True
        self._attempt(self.inner.start)
        self._started = not self.failures

    def store_init_configuration(self, values: Settings) -> None:
        """Report the settings."""
        self._attempt(lambda: self.inner.store_init_configuration(values))

    def log(self, values: dict[str, Any], step: int | None = None, **others: Any) -> None:
        """Report numbers of a step."""
        self._attempt(lambda: self.inner.log(values, step=step, **others))

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        """Show a picture."""
        raise NotImplementedError  # every package has a way of its own

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Show how `values` (N,) are distributed."""
        raise NotImplementedError  # likewise

    def finish(self) -> None:
        """Write what is left, once, and say what was lost."""
        if self._started:
            self._attempt(self.inner.finish)
            self._started = False
        if self.failures:
            words = f"{self.name} did not take {self.failures} reports"
            print(f"{words}; metrics.jsonl has all numbers")
            self.tally.keep("trackers", self.name, words, [], count=self.failures)
            self.failures = 0

    def _attempt(self, act: Callable[[], object]) -> None:
        """Do it, or count that it cannot be done."""
        if not self._started:
            self.failures += 1
            return
        try:
            act()
        except Exception as error:  # whatever a tracker raises, the run is worth more
            self.failures += 1
            if self.failures == 1:
                words = printable(str(error))[:300] or type(error).__name__
                tqdm.write(f"warning: {self.name} fails ({words}); the training goes on")


class TensorBoard(Tracker):
    """Event files in `folder`; one run in the HPARAMS tab, compared by its last numbers.

    What an interrupted run reported after `first_step` is done again, and hidden.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        place = {"run_name": folder.name, "logging_dir": folder.parent}
        super().__init__("tensorboard", TensorBoardTracker(**place, purge_step=first_step + 1))
        self._end: Any = None

    def store_init_configuration(self, values: Settings) -> None:
        """Report the settings, beside the curves and not as a run of their own."""
        from torch.utils.tensorboard.summary import hparams

        experiment, start, self._end = hparams(values, dict.fromkeys(FINAL, 0.0))
        self._attempt(lambda: [*map(self.tracker.file_writer.add_summary, (experiment, start))])

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        """Show a picture under IMAGES."""
        pixels = np.asarray(picture)
        self._attempt(lambda: self.tracker.add_image(tag, pixels, step, dataformats="HWC"))

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Show how `values` (N,) are distributed, under HISTOGRAMS and DISTRIBUTIONS."""
        self._attempt(lambda: self.tracker.add_histogram(tag, values.cpu(), step))

    def finish(self) -> None:
        """Say that the run ended, and close the file."""
        if self._end is not None and self._started:
            self._attempt(lambda: self.tracker.file_writer.add_summary(self._end))
        super().finish()


class Wandb(Tracker):
    """A run of Weights & Biases, with files in `folder`; WANDB_MODE=offline keeps all of it here.

    It is told nothing of this machine but its load: no command, path, user, code or package list.
    """

    def __init__(self, folder: Path, name: str) -> None:
        import wandb

        private = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        super().__init__("wandb", WandBTracker(project, name=name, dir=folder, settings=private))

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        """Show a picture."""
        self._attempt(lambda: self.inner.log_images({tag: [picture]}, step=step))

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Show how `values` (N,) are distributed."""
        import wandb

        finite = values[values.isfinite()].tolist()
        self._attempt(lambda: self.inner.log({tag: wandb.Histogram(finite)}, step=step))


def check_installed(names: Sequence[str]) -> None:
    """Raise `OptionError` for a tracker whose package is missing."""
    for name in names:
        if name != "none" and importlib.util.find_spec(name) is None:
            raise OptionError(
                f"report_to {name} needs the package {name}, which is not installed: pip install "
                f"-e '.[{name}]', or leave {name} out of report_to"
            )


def build_trackers(
    names: Sequence[str], folder: Path, run: str, first_step: int, tally: Tally | None = None
) -> list[Tracker]:
    """The trackers by name, for the run in `folder`; they start with accelerate's.

    What they do not take goes into the `tally`.
    """
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard", first_step),
        "wandb": lambda: Wandb(folder, run),
    }
    trackers = [makers[name]() for name in names if name != "none"]
    for tracker in trackers:
        tracker.tally = tally or Tally()
    return trackers
