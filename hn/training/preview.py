"""Previews: a grid of prompts x strengths, from the same noise every time."""

from pathlib import Path

from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from hn.config import ValidationConfig
from hn.diffusion.attention import Attachment
from hn.diffusion.pipeline import Painter, grid, save_picture
from hn.training.checkpoint import TrainingState
from hn.training.reporter import Reporter


class Preview:
    """Draws when it is due, on the main process; what strength 0 shows is drawn once."""

    def __init__(
        self,
        accelerator: Accelerator,
        painter: Painter | None,
        attachment: Attachment,
        config: ValidationConfig,
        folder: Path,
        reporter: Reporter,
    ) -> None:
        self._accelerator = accelerator
        self._painter = painter if accelerator.is_main_process else None
        self._attachment = attachment
        self._config = config
        self._folder = folder / "previews"
        self._reporter = reporter
        self._without: list[Image.Image] | None = None
        self._drawn_step = -1

    def __call__(self, state: TrainingState) -> None:
        """Draw if this step is due."""
        every = self._config.validation_steps
        if every and state.step % every == 0:
            self.draw(state)

    def draw(self, state: TrainingState) -> None:
        """Draw the grid of this step, unless it is there already."""
        if self._painter is None or self._drawn_step == state.step:
            return
        self._drawn_step = state.step
        strengths = self._config.validation_strengths
        bar = tqdm(strengths, desc="preview", unit="strength", leave=False)
        columns = [self._column(self._painter, strength) for strength in bar]
        labels = [f"strength {strength:g}" for strength in strengths]
        picture = grid(list(zip(*columns, strict=True)), self._config.validation_prompt, labels)
        save_picture(picture, self._folder / f"step-{state.step:08d}.png")
        self._reporter.picture("preview", picture, state.step)

    def _column(self, painter: Painter, strength: float) -> list[Image.Image]:
        """One picture of each prompt at this strength."""
        if strength == 0 and self._without is not None:
            return self._without
        with self._attachment.at_strength(strength), self._accelerator.autocast():
            pictures = painter.draw()
        if strength == 0:
            self._without = pictures
        return pictures
