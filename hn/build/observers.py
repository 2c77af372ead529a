"""What looks at the model while it is trained: every `validation_steps` steps, and at the end."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from hn.config import Config
from hn.data.tally import Tally
from hn.diffusion.base_model import BaseModel
from hn.diffusion.denoiser import Denoiser
from hn.diffusion.pipeline import Painter
from hn.evaluation.heldout import Heldout
from hn.evaluation.paired import Pictures
from hn.training.state import TrainingState
from hn.training.telling.preview import Preview
from hn.training.telling.reporter import Reporter
from hn.training.telling.residuals import Residuals


@dataclass(frozen=True)
class Observers:
    """Each owns its interval, and none changes what is trained."""

    preview: Preview
    residuals: Residuals
    heldout: Heldout

    def __call__(self, state: TrainingState) -> None:
        """Look, if this step is due."""
        self.preview(state)
        self.residuals(state)
        self.heldout(state)

    def settled(self, state: TrainingState) -> bool:
        """Whether there is nothing more to be learnt (`early_stop_patience`)."""
        return self.heldout.settled(state)

    def conclude(self, state: TrainingState, last_step: int) -> bool:
        """Whether training has come to its end; then this step counts as measured.

        Where a signal came it does not: the run that goes on must be as one that was not stopped.
        """
        finished = state.step >= last_step or self.settled(state)
        if finished:
            self.residuals.measure(state)
            self.heldout.conclude(state)
        return finished

    def finish(self, state: TrainingState) -> None:
        """Look once more, unless this step was seen."""
        self.preview.draw(state)
        self.residuals.measure(state)
        self.heldout.measure(state)


def build_observers(
    config: Config,
    accelerator: Accelerator,
    base: BaseModel,
    denoiser: Denoiser,
    painter: Painter | None,
    held_out: Pictures | None,
    folder: Path,
    reporter: Reporter,
    tally: Tally,
) -> Observers:
    """Previews, residual ratios, held-out loss.

    The main process looks; where the UNet is dealt out, all do, since each forward needs them all.
    """
    validation, looks = config.validation, accelerator.is_main_process or base.sharded
    painter = painter if looks else None
    return Observers(
        Preview(accelerator, painter, denoiser.attachment, validation, folder, reporter, tally),
        Residuals(denoiser, validation.validation_steps, reporter, looks=looks),
        Heldout(base, denoiser, held_out, config, reporter, looks=looks),
    )
