"""What would fit where nothing does: which settings to change, and what a run takes with them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

from hn import cli
from hn.build.estimates import GIB, estimate, step_of, unet_of
from hn.build.models import DTYPES
from hn.config import Config, OptimizerConfig
from hn.diffusion.loading.outline import Outline
from hn.diffusion.memory.plan import Plan, blocks_of
from hn.network.description import HypernetworkConfig

SMALLER = (0.75, 0.5)  # of the resolution
SIDE_STEP = 64  # pixels
Change = tuple[str, dict[str, Any]]  # a section of the settings, and what is other in it


@dataclass(frozen=True)
class Remedy:
    """Settings in words, and the bytes that a run takes with them at the peak of a step."""

    words: str
    total: int


@dataclass(frozen=True)
class Run:
    """What a run is, as far as memory goes; `network` is that of a file it goes on from."""

    config: Config
    outline: Outline
    device: str
    processes: int
    network: HypernetworkConfig | None = None

    def least(self, config: Config) -> int:
        """The bytes of a step with these settings and all blocks computed again."""
        dtype = DTYPES[config.training.mixed_precision or "no"]
        where: dict[str, Any] = {"processes": self.processes}
        step = step_of(config, self.outline, dtype, network=self.network, **where)
        plan = Plan(frozen_aware=True, blocks=blocks_of(unet_of(step)))
        return estimate(config, self.outline, step, plan, device=self.device, **where).total


def remedies(run: Run, room: int, *, quiet: bool = False) -> list[Remedy]:
    """What each change takes alone; then as many of them together as it takes to fit `room` bytes,
    or all that there are, if none does alone. A rehearsal each.
    """
    cli.regain_imports()  # an optimizer that is not used yet is asked for its state
    changes = [*_changes(run.config)]
    bar = tqdm(changes, "what would fit", unit=" settings", leave=False, disable=quiet)
    found = [Remedy(words, run.least(_changed(run.config, it))) for words, it in bar]
    if any(remedy.total <= room for remedy in found):
        return found
    together = run.config
    for number, (_, change) in enumerate(changes[1:], 2):
        together = _changed(_changed(together, changes[0][1]), change)
        total = run.least(together)
        if total <= room or number == len(changes):
            words = ", ".join(words for words, _ in changes[:number])
            return [*found, Remedy(words, total)]
    return found


def in_words(found: list[Remedy], room: int) -> str:
    """A line for each, what fits first; nothing if there is none."""
    lines = [
        f"  {it.total / GIB:6.2f} GiB with {it.words}{', which fits' * (it.total <= room)}"
        for it in sorted(found, key=lambda it: it.total > room)
    ]
    return "\n".join(["It would take", *lines]) if lines else ""


def _changes(config: Config) -> Iterator[tuple[str, Change]]:
    """In words and in settings; what costs the result least comes first."""
    training, batch = config.training, config.training.train_batch_size
    if (training.mixed_precision or "no") == "no":
        yield "mixed_precision bf16", ("training", {"mixed_precision": "bf16"})
    plain = config.optimizer.optimizer == OptimizerConfig().optimizer
    if plain and not config.optimizer.use_8bit_adam and find_spec("bitsandbytes"):
        yield "use_8bit_adam", ("optimizer", {"use_8bit_adam": True})
    if batch > 1:
        steps = training.gradient_accumulation_steps * batch
        fewer = {"train_batch_size": 1, "gradient_accumulation_steps": steps}
        yield f"train_batch_size 1 and gradient_accumulation_steps {steps}", ("training", fewer)
    if config.memory.quantize_base == "none" and not config.model.shard_base_model:
        yield "quantize_base fp8", ("memory", {"quantize_base": "fp8"})
    sized = config.data.cached_data_dir is None and not config.data.native_size
    for share in SMALLER if sized else ():
        sides = tuple(int(side * share) // SIDE_STEP * SIDE_STEP for side in config.data.resolution)
        if min(sides) > 0:
            words = " ".join(map(str, sides))
            yield f"resolution {words}", ("data", {"resolution": sides})


def _changed(config: Config, change: Change) -> Config:
    section, values = change
    changed: Any = replace(getattr(config, section), **values)
    return replace(config, **{section: changed})
