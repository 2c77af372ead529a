"""Drift: how far a hypernetwork moves predictions that have nothing to do with what it learnt.

The prompts are unrelated to the training pictures, and the latents are of pictures that the base
model drew for them: where it knows its way, and where nothing should change.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from hn.data.cache.contexts import Contexts
from hn.diffusion.base_model import BaseModel
from hn.evaluation import paired
from hn.evaluation.paired import Pictures, Predict

PROMPTS = (
    "a photo of a mountain lake at dawn",
    "an oil painting of a ship in a storm",
    "a portrait of an old man with a hat",
    "a bowl of fruit on a wooden table",
    "a busy street in a city at night",
    "a cat asleep on a windowsill",
    "a pencil drawing of a castle",
    "a close-up of a flower in the rain",
)


class Drift:
    """What the base model predicts for some latents, to compare with; `draws` of each."""

    def __init__(
        self, latents: Tensor, prompts: Sequence[str], base: BaseModel, contexts: Contexts,
        predict: Predict, seed: int, draws: int = paired.DRAWS,
    ) -> None:  # fmt: skip
        self._pictures = Pictures.drawn(latents, prompts, base, contexts)
        self._base = base
        self._seed = seed
        self._draws = draws
        self._reference = self._predictions(predict)

    def of(self, predict: Predict) -> float:
        """Root mean square of the change, relative to that of what the base model predicts."""
        return relative_change(self._predictions(predict), self._reference)

    @torch.no_grad()
    def _predictions(self, predict: Predict) -> Tensor:
        """For all draws, one after the other (N * draws * C * h * w,)."""
        device, found = self._base.device, []
        for rows in tqdm([*self._pictures.batches(self._draws)], "drift", leave=False):
            drawn = paired.draw(self._pictures, rows, self._draws, self._base, self._seed)
            prediction = predict(drawn.noisy.to(device), drawn.timesteps.to(device), drawn.of)
            found.append(prediction.float().cpu().flatten())
        return torch.cat(found)


def relative_change(now: Tensor, before: Tensor) -> float:
    """rms(now - before) / rms(before), of tensors of one shape."""
    return float((now - before).square().mean().sqrt() / before.square().mean().sqrt())
