"""Previews: a grid of prompts x strengths, from the same noise every time; of an average of the
weights, too, if one is kept.
"""

from pathlib import Path

from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from hn.config import ValidationConfig
from hn.data.tally import Tally
from hn.diffusion.attention import Attachment
from hn.diffusion.pipeline import Painter, grid, save_picture
from hn.errors import printable
from hn.training.averages import View
from hn.training.state import TrainingState
from hn.training.telling.reporter import Reporter


class Preview:
    """Draws when it is due, with a `painter`; what strength 0 shows is drawn once.

    What cannot be drawn or written stops no training: it is said, and noted in the `tally`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        painter: Painter | None,
        attachment: Attachment,
        config: ValidationConfig,
        folder: Path,
        reporter: Reporter,
        tally: Tally,
    ) -> None:
        self._accelerator = accelerator
        self._painter = painter
        self._attachment = attachment
        self._config = config
        self._folder = folder / "previews"
        self._reporter = reporter
        self._tally = tally
        self._without: list[Image.Image] | None = None
        self._drawn: tuple[int, int] | None = None  # moment

    def __call__(self, state: TrainingState) -> None:
        """Draw if this step is due."""
        every = self._config.validation_steps
        if every and state.step % every == 0:
            self.draw(state)

    def draw(self, state: TrainingState) -> None:
        """Draw the grid of this step, unless it is there already."""
        if self._painter is None or self._drawn == state.moment:
            return
        self._drawn = state.moment
        self._attempt(self._painter, state)

    def _draw(self, painter: Painter, state: TrainingState) -> None:
        shown = [
            (view, strength)
            for view in state.averages
            for strength in self._config.validation_strengths
            if strength != 0 or not view.name  # the base model is the same for all
        ]
        bar = tqdm(shown, desc="preview", unit="strength", leave=False)
        columns = [self._column(painter, view, strength) for view, strength in bar]
        labels = [f"{view.name or 'strength'} {strength:g}" for view, strength in shown]
        if not self._accelerator.is_main_process:
            return
        picture = grid(list(zip(*columns, strict=True)), self._config.validation_prompt, labels)
        save_picture(picture, self._folder / f"step-{state.step:08d}.png")
        self._reporter.picture("preview", picture, state.step)

    def _attempt(self, painter: Painter, state: TrainingState) -> None:
        """Draw, or say and note that it fails: hours of training are worth more than a picture."""
        try:
            self._draw(painter, state)
        except Exception as error:  # of any library, or a full disk
            words = printable(" ".join(str(error).split()))[:300] or type(error).__name__
            fault = f"step {state.step}: {words}"
            tqdm.write(f"warning: the preview fails, the training goes on; {fault}")
            self._tally.keep("previews", "failed", "previews that failed", [fault])

    def _column(self, painter: Painter, view: View, strength: float) -> list[Image.Image]:
        """One picture of each prompt with these weights at this strength."""
        if strength == 0 and self._without is not None:
            return self._without
        strong = self._attachment.at_strength(strength)
        with view.applied(), strong, self._accelerator.autocast():
            pictures = painter.draw()
        if strength == 0:
            self._without = pictures
        return pictures
