"""Whether pictures still show what was asked for: the base model, asked which prompt it was.

A diffusion model is a classifier (https://arxiv.org/abs/2303.16203): the prompt with which it
predicts the noise in a picture best is the one it finds likeliest. Only the differences between
prompts count, so all see the same noise.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from hn.data.cache.contexts import Contexts
from hn.diffusion import objective
from hn.diffusion.base_model import BaseModel
from hn.evaluation import paired
from hn.evaluation.paired import Pictures, Predict


@torch.no_grad()
def errors(
    latents: Tensor,
    prompts: Sequence[str],
    base: BaseModel,
    contexts: Contexts,
    predict: Predict,
    seed: int,
    draws: int = paired.DRAWS,
) -> Tensor:
    """The loss (N, P) of each picture of latents (N, C, h, w) with each of the prompts."""
    drawn_ones = Pictures.drawn(latents, [""] * len(latents), base, contexts)
    found = torch.empty(len(latents), len(prompts))
    for column, prompt in enumerate(tqdm(prompts, "agreement", leave=False)):
        pictures = replace(drawn_ones, prompts=[prompt] * len(latents))
        for rows in pictures.batches(draws):
            drawn = paired.draw(pictures, rows, draws, base, seed)
            prediction = predict(
                drawn.noisy.to(base.device), drawn.timesteps.to(base.device), drawn.of
            )
            losses = objective.loss_per_sample(prediction.cpu(), drawn.target)
            found[[row // draws for row in rows[::draws]], column] = losses.view(-1, draws).mean(1)
    return found


def agreement(errors: Tensor, own: Sequence[int]) -> float:
    """The share of pictures whose `own` prompt has the least of their errors (N, P)."""
    return float((errors.argmin(1) == torch.tensor(own)).float().mean())
