"""The state that a process began with, held in memory: what a run goes back to that has saved
nothing yet.
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from hn.training.keeping.best import Best
from hn.training.keeping.trees import flatten, unflatten
from hn.training.state import TrainingState
from hn.training.watching.health import Health


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint has, of this process; tensors on the CPU."""

    step: int
    weights: dict[str, Tensor]
    averages: dict[str, Tensor]
    optimizer: tuple[Any, dict[str, Tensor]]
    scaler: dict[str, Any] | None
    stream: dict[str, Any] | None
    best: dict[str, Any]
    health: dict[str, Any]

    @classmethod
    def take(cls, state: TrainingState) -> "Snapshot":
        """Copy the state."""
        return cls(
            step=state.step,
            weights=_copied(state.hypernetwork.state_dict()),
            averages=state.averages.tensors(),
            optimizer=flatten(state.optimizer.state_dict()),
            scaler=None if state.scaler is None else state.scaler.state_dict(),
            stream=None if state.stream is None else state.stream.state(),
            best=asdict(state.best),
            health=asdict(state.health),
        )

    def put_back(self, state: TrainingState) -> None:
        """Make the state what it was."""
        state.hypernetwork.load_state_dict(self.weights)
        state.averages.restore(self.averages)
        tree, tensors = self.optimizer
        state.optimizer.load_state_dict(unflatten(tree, _copied(tensors)))  # it keeps what it gets
        if state.scaler is not None and self.scaler is not None:
            state.scaler.load_state_dict(self.scaler)
        if state.stream is not None and self.stream is not None:
            state.stream.restore(self.stream)
        state.best, state.health = Best(**self.best), Health(**self.health)
        state.step = self.step


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
