"""The checkpoints of a run, as artifacts to evaluate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hn.errors import ModelError
from hn.network import files
from hn.network.module import Hypernetwork
from hn.training.keeping.checkpoint import fault, list_checkpoints

EMA = "-ema"
FOLDER = "checkpoints"


@dataclass(frozen=True)
class Candidate:
    """An artifact: `kind` is "raw" for the weights that were trained, "ema" for their average."""

    step: int
    kind: str
    path: Path

    @property
    def label(self) -> str:
        """Its step, and its kind where that is not the usual one."""
        return f"{self.step}" if self.kind == "raw" else f"{self.step} ({self.kind})"

    def load(self) -> Hypernetwork:
        """Read it. Raises `ModelError`."""
        return files.load(self.path)


def find_candidates(run: Path) -> list[Candidate]:
    """All artifacts in the valid checkpoints of a run, by step; damaged ones are named.

    Raises `ModelError` if there is none.
    """
    found: list[Candidate] = []
    for checkpoint in list_checkpoints(run / FOLDER):
        damage = fault(checkpoint)
        if damage is not None:
            print(f"{checkpoint} is passed over: {damage}")
            continue
        step = int(checkpoint.name.rpartition("-")[2])
        for path in sorted(checkpoint.glob("*.safetensors"), key=lambda it: it.stem.endswith(EMA)):
            found.append(Candidate(step, "ema" if path.stem.endswith(EMA) else "raw", path))
    if not found:
        raise ModelError(
            f"{run} has no checkpoint to evaluate: give the folder of a run that has saved, such "
            "as runs/demo"
        )
    return found


def artifacts_in(names: Sequence[str]) -> list[str]:
    """Files as they are; of a run, or its folder of checkpoints, the artifacts in these, by step.

    Averages that the run itself made are left out. Raises `ModelError` as `find_candidates` does.
    """
    found: list[str] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            run = path.parent if path.name == FOLDER else path
            found += [str(it.path) for it in find_candidates(run) if it.kind == "raw"]
        else:
            found.append(name)
    return found
