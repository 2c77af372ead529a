"""What changes while training, in one place: what a checkpoint saves and a resumed run restores."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch

from hn.network.module import Hypernetwork
from hn.training.averages import Averages
from hn.training.keeping.best import Best
from hn.training.watching.health import Health


class Resumable(Protocol):
    """What goes on from where it was, by plain JSON values; each process has its own."""

    def state(self) -> dict[str, Any]:
        """Where it is."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...


@dataclass(frozen=True)
class Gathered:
    """An optimizer's state that one process can write by itself."""

    state: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        """As the optimizer's."""
        return self.state


@dataclass
class TrainingState:
    """Everything that changes while training. `step` counts optimizer steps, absolute over resumes.

    `fingerprint`: the settings that make the run what it is, by name; a resumed run must have the
    same, but for those of `may_differ`. `stream`: what the pictures come from, where that is no
    function of the step. `best`: what was measured on held-out pictures, `health`: how training
    goes. `ending`: why it ended before its last step.
    """

    hypernetwork: Hypernetwork
    optimizer: Any  # torch's, `PartitionedOptimizer` or, to be written, `Gathered`
    step: int = 0
    scaler: torch.amp.GradScaler | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)
    may_differ: tuple[str, ...] = ()
    stream: Resumable | None = None
    averages: Averages = field(default_factory=Averages)
    best: Best = field(default_factory=Best)
    health: Health = field(default_factory=Health)
    ending: str = ""

    @property
    def moment(self) -> tuple[int, int]:
        """The step, and how often the run went back before it: no moment comes twice."""
        return self.health.returns, self.step

    def gathered(self) -> Self:
        """The same, to be written by one process. All must ask: they may share the optimizer."""
        return replace(self, optimizer=Gathered(self.optimizer.state_dict()))

    def advance(self, *, taken: bool) -> None:
        """Count a finished step, and take it into the averages if it changed the weights."""
        self.step += 1
        if taken:
            self.averages.update()
