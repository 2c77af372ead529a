"""The held-out loss while training: pictures that were not trained on, with and without the
hypernetwork, on the same noise.
"""

import math
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from hn.config import Config
from hn.diffusion.base_model import BaseModel
from hn.diffusion.denoiser import Denoiser
from hn.evaluation import paired
from hn.evaluation.paired import Comparison, Pictures
from hn.training.keeping.best import Best
from hn.training.state import TrainingState
from hn.training.telling.reporter import Reporter


class Heldout:
    """Measures when it is due, where it `looks`, with fixed noise and timesteps.

    What it finds the best is noted in the state, on every process. Without `pictures` it measures
    nothing.
    """

    def __init__(
        self,
        base: BaseModel,
        denoiser: Denoiser,
        pictures: Pictures | None,
        config: Config,
        reporter: Reporter,
        *,
        looks: bool,
    ) -> None:
        self._pictures = pictures
        self._looks = looks  # the main process does
        self._seed = config.training.seed
        self._base = base
        self._denoiser = denoiser
        self._reporter = reporter
        self._every = config.validation.validation_steps
        self._patience = config.validation.early_stop_patience
        self._measured: tuple[int, int] | None = None  # moment
        self._base_losses: Tensor | None = None
        self.last: dict[str, Comparison] = {}  # by the name of the view

    def __call__(self, state: TrainingState) -> None:
        """Measure if this step is due."""
        if self._every and state.step % self._every == 0:
            self.conclude(state)

    def conclude(self, state: TrainingState) -> None:
        """Measure, unless this step was measured, and note whether it is the best so far.

        All processes must call it at the same steps.
        """
        if self._pictures is None or self._measured == state.moment:
            return
        losses = self.measure(state)
        means: list[Any] = [None if losses is None else losses.mean(1).tolist()]
        note(state.best, state.step, *broadcast_object_list(means))

    def measure(self, state: TrainingState) -> Tensor | None:
        """Compare strength 1 with strength 0 and report it, unless this step was measured.

        Returns the losses (N, draws) where it looks.
        """
        if self._pictures is None or self._measured == state.moment:
            return None
        self._measured = state.moment
        if not self._looks:
            return None
        if self._base_losses is None:
            self._base_losses = self._losses(self._pictures, 0.0)
        values = {"heldout_base_loss": float(self._base_losses.mean())}
        losses = {}
        for view in state.averages:
            with view.applied():
                losses[view.name] = self._losses(self._pictures, 1.0)
            values |= self._numbers(f"heldout{view.tail}".replace("-", "_"), losses[view.name])
            self.last[view.name] = Comparison.of(losses[view.name], self._base_losses)
        self._reporter.scalars(values, state.step)
        return losses[""]

    def settled(self, state: TrainingState) -> bool:
        """Whether the held-out loss has not fallen for as long as is allowed."""
        best = state.best
        if not self._patience or best.waited < self._patience:
            return False
        lowest = math.nan if best.loss is None else best.loss
        state.ending = (
            f"ended at step {state.step}: the held-out loss did not fall beyond doubt in "
            f"{best.waited} measurements (early_stop_patience {self._patience}); the lowest, "
            f"{lowest:.4f}, was at step {best.step}"
        )
        return True

    def _losses(self, pictures: Pictures, strength: float) -> Tensor:
        with self._denoiser.attachment.at_strength(strength):
            return paired.losses(pictures, self._denoiser.predict, self._base, self._seed)

    def _numbers(self, stem: str, losses: Tensor) -> dict[str, float]:
        """What is reported of the losses (N, draws) of a view, by tags that begin with `stem`."""
        assert self._base_losses is not None
        comparison = Comparison.of(losses, self._base_losses)
        difference, each = comparison.difference, paired.bands(losses, self._base_losses)
        spans = paired.edges(len(self._base.alphas_cumprod))
        ends = {f"{stem}_difference_{end}": it for end, it in difference.as_json().items()}
        if ends:  # not of one picture
            ends[f"{stem}_difference_error"] = difference.error
        gains = {
            f"{stem}_gain_{start}_{end}": band.gain
            for (start, end), band in zip(spans, each, strict=True)
        }
        return {f"{stem}_loss": comparison.loss, f"{stem}_gain": comparison.gain, **ends, **gains}


def note(best: Best, step: int, means: list[float]) -> None:
    """Note what was measured at a step: `means` (N,) are the losses of the pictures.

    The best is what is lowest. What counts for patience is lower beyond doubt (95 %, paired by
    picture, on the same noise) than when it last was: slow progress adds up until it counts.
    """
    now = torch.tensor(means, dtype=torch.float64)
    if not bool(now.isfinite().all()):
        best.waited += 1
        return
    loss = float(now.mean())
    if best.loss is None or loss < best.loss:
        best.step, best.loss = step, loss
    if not best.reference:
        best.reference = means
        return
    change = Comparison.of(now[:, None], torch.tensor(best.reference)[:, None])
    if change.difference.high < 0:
        best.reference, best.waited = means, 0
    else:
        best.waited += 1
