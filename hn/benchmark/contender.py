"""One way to take a training step, as all of them are measured."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hn.benchmark.scene import Scene
from hn.config import OptimizerConfig
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.objective.problem import Noised
from hn.network.module import Hypernetwork
from hn.training import optimizers

RATE = 1e-5
Forward = Callable[[Tensor, Tensor, Condition], Tensor]
"""From noisy latents (B, 4, h, w), timesteps (B,) and conditions to a prediction."""


class Contender:
    """A forward pass, and what it trains: a hypernetwork, or other parameters.

    `idle`: what also gets gradients, for nothing; `frozen`: what is computed with beside the UNet.
    `clips`: the norm of the gradient is bounded, as in ours by default. `loss_reads`: how often the
    host reads the loss of a micro-batch, and waits for it. `remark`: what is to be said of its row.
    """

    def __init__(
        self,
        scene: Scene,
        forward: Forward,
        parameters: list[nn.Parameter],
        *,
        network: Hypernetwork | None = None,
        idle: Sequence[nn.Parameter] = (),
        frozen: Sequence[nn.Parameter] = (),
        clips: bool = True,
        loss_reads: int = 0,
        remark: Callable[[], str] = str,
    ) -> None:
        self.remark = remark
        self.parameters = parameters
        self.taught = [*parameters, *idle]
        self.frozen = frozen
        self.network = network
        self._scene = scene
        self._forward = forward
        self._clips = clips
        self._loss_reads = loss_reads
        self._optimizer = optimizers.optimizer_of(parameters, OptimizerConfig(), RATE)

    def __call__(self, step: int) -> None:
        """Take a step."""
        loss = self.backward(self.problem(step))
        for _ in range(self._loss_reads):
            loss.item()  # GPU sync, as there
        if self._clips:
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def problem(self, step: int) -> Noised:
        """What is learnt from in a step."""
        return self._scene.problem(step)

    def backward(self, problem: Noised) -> Tensor:
        """The loss () of a problem, of which the gradients are taken."""
        with self._scene.autocast():
            prediction = self._forward(problem.noisy, problem.timesteps, self._scene.condition)
        loss = self._scene.loss(prediction, problem)
        del prediction
        loss.backward()
        return loss.detach()

    def gradient(self) -> Tensor:
        """All gradients as one vector (N,) in float32 on the CPU, and none are left.

        Without those that are zero but for rounding, of a constant that all keys get.
        """
        left_out = set() if self.network is None else set(map(id, _constants(self.network)))
        kept = [p.grad for p in self.parameters if id(p) not in left_out and p.grad is not None]
        vector = torch.cat([grad.flatten().float().cpu() for grad in kept])
        self._optimizer.zero_grad()
        return vector


def _constants(network: Hypernetwork) -> list[nn.Parameter]:
    """The last bias for the keys of each width."""
    lasts = [list(network.module(dim, "k").parameters())[-1] for dim in network.dims]
    return [last for last in lasts if last.dim() == 1]
