"""The steps of a training without all that is around them: for what is compared or tried out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from torch import Tensor, nn

from hn import rng
from hn.config import OptimizerConfig
from hn.data.batches import Batches
from hn.data.streaming.batches import StreamedBatches
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.objective import Objective
from hn.training import optimizers
from hn.training.schedule import Schedule

Forward = Callable[[Tensor, Tensor, Condition], tuple[Tensor, Tensor]]
"""From noisy latents, timesteps and a condition to prediction and residual, as `Denoiser` has it.
"""


@dataclass(frozen=True, kw_only=True)
class Course:
    """The problems of a run, and how it learns from them: optimizer, rates, bounds of gradients.

    In one process, without a loss scaler.
    """

    batches: Batches | StreamedBatches
    objective: Objective
    optimizer: OptimizerConfig
    rates: Schedule
    bounds: Schedule
    seed: int

    def steps(
        self, forward: Forward, parameters: list[nn.Parameter], rate: Callable[[int], float]
    ) -> Iterator[int]:
        """Train as long as it is iterated; yields the number of each step when it is done."""
        optimizer = optimizers.optimizer_of(parameters, self.optimizer, rate(0))
        for step in count():
            for batch in self.batches.at(step):
                problem = self.objective.draw(
                    batch.latents, batch.step, batch.slots, batch.loss_weights
                )
                rng.seed_layers(self.seed, batch.step, batch.slots[0])
                prediction, residual = forward(problem.noisy, problem.timesteps, batch.condition)
                loss = self.objective.loss(prediction, problem, residual)
                (loss / self.batches.layout.accumulation).backward()
            self._clip(parameters, step)
            optimizers.set_rate(optimizer, rate(step))
            optimizer.step()
            optimizer.zero_grad()
            yield step

    def _clip(self, parameters: list[nn.Parameter], step: int) -> None:
        bound = self.bounds.rate(step)
        if self.optimizer.clip_grad_mode == "norm":
            nn.utils.clip_grad_norm_(parameters, bound)
        elif self.optimizer.clip_grad_mode == "value":
            nn.utils.clip_grad_value_(parameters, bound)
