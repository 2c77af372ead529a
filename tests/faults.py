"""Numbers that are not finite, put into real runs at chosen steps and processes."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from hn.diffusion.denoiser import Denoiser
from hn.diffusion.objective import Objective
from hn.training.state import TrainingState
from hn.training.watching.guard import Guard

Fault = Callable[[int], str | None]
"""What goes wrong at a step: loss, infinite, high, grad, weight, latent, or nothing."""


def inject(fault: Fault, patch: Callable[[type, str, object], None]) -> None:
    """Let `fault` happen wherever it says, once asked at every micro-batch of a step."""
    now: list[str | None] = [None]
    draw, loss, forward = Objective.draw, Objective.loss, Denoiser.forward

    def drawn(self, latents, step, slots, loss_weights=None):
        now[0] = fault(step)
        if now[0] == "latent":
            latents = latents.clone()
            latents[0] = torch.nan
        return draw(self, latents, step, slots, loss_weights)

    def computed(self, noisy, timesteps, condition):
        if now[0] == "weight":
            with torch.no_grad():
                next(self.hypernetwork.parameters()).view(-1)[0] = torch.nan
        return forward(self, noisy, timesteps, condition)

    def lost(self, prediction, problem, residual):
        if now[0] == "grad":
            prediction.register_hook(lambda gradient: gradient * torch.nan)
        value = loss(self, prediction, problem, residual)
        # the gradient of the second is finite
        faulty = {"loss": value * torch.nan, "infinite": value + torch.inf, "high": value * 5}
        return faulty.get(now[0], value)

    patch(Objective, "draw", drawn)
    patch(Denoiser, "forward", computed)
    patch(Objective, "loss", lost)


def watch(patch: Callable[[type, str, object], None]) -> list[tuple[int, bool, bool]]:
    """Note of each step whether it was taken, and whether any bit of the state is another."""
    noted: list[tuple[int, bool, bool]] = []
    before: list[str] = []
    takes, advance = Guard.takes, TrainingState.advance

    def judged(self, state):
        before[:] = [digest(state)]
        return takes(self, state)

    def advanced(self, *, taken):
        advance(self, taken=taken)
        noted.append((self.step - 1, taken, digest(self) != before[0]))

    patch(Guard, "takes", judged)
    patch(TrainingState, "advance", advanced)
    return noted


def trace(path: Path, patch: Callable[[type, str, object], None]) -> None:
    """Note what each slot of each step is trained on: a line of step, slot and hash."""
    draw = Objective.draw

    def drawn(self, latents, step, slots, loss_weights=None):
        problem = draw(self, latents, step, slots, loss_weights)
        with open(path, "a", encoding="utf-8") as file:
            for slot, noisy, timestep in zip(slots, problem.noisy, problem.timesteps, strict=True):
                sha = hashlib.sha256(noisy.numpy().tobytes()).hexdigest()
                file.write(f"{step} {slot} {int(timestep)} {sha}\n")
        return problem

    patch(Objective, "draw", drawn)


def digest(state: TrainingState) -> str:
    """A hash of weights, optimizer and averages."""
    from hn.training.keeping.snapshot import Snapshot

    found = replace(Snapshot.take(state), step=0, health={})
    sha = hashlib.sha256(repr((found.optimizer[0], found.scaler, found.stream)).encode())
    for tensors in (found.weights, found.averages, found.optimizer[1]):
        for name, tensor in sorted(tensors.items()):
            sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()
