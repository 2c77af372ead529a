"""All checkpoints of a run, measured one after the other with the same draws."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm import tqdm

from hn.evaluation import memorisation, paired, ranking
from hn.evaluation.bench import TRAINED, Bench
from hn.evaluation.candidates import Candidate
from hn.evaluation.drift import PROMPTS, Drift
from hn.evaluation.memorisation import Memorisation
from hn.evaluation.paired import Comparison, Pictures
from hn.evaluation.ranking import Contender
from hn.network.module import Hypernetwork
from hn.training.telling.residuals import watched

FEWEST = 16  # pictures to judge memorisation by, where captions are few


@dataclass(frozen=True)
class Losses:
    """Of some pictures (N, draws), with and without the hypernetwork."""

    now: Tensor
    base: Tensor

    @property
    def comparison(self) -> Comparison:
        """Their means and paired difference."""
        return Comparison.of(self.now, self.base)

    @property
    def gains(self) -> Tensor:
        """The gain (N,) of each picture."""
        return paired.picture_gains(self.now, self.base)


@dataclass(frozen=True)
class Measured:
    """What was found of a checkpoint, at strength 1."""

    candidate: Candidate
    held_out: Losses | None
    trained: Losses | None
    drift: float
    residuals: dict[str, float]
    memorisation: Memorisation | None
    flags: list[str] = field(default_factory=list)

    @property
    def judged(self) -> Losses:
        """What ranks it: held-out pictures, or training pictures where there are none."""
        losses = self.held_out or self.trained
        assert losses is not None
        return losses

    @property
    def contender(self) -> Contender:
        """It, as the ranking sees it."""
        losses = self.judged
        gain, means = losses.comparison.gain, losses.now.mean(1)
        return Contender(gain, means, self.drift, self.candidate.step, self.flags)


class Measurer:
    """Measures hypernetworks, each against the same draws of the base model."""

    def __init__(self, bench: Bench, any_net: Hypernetwork) -> None:
        self._bench = bench
        sample = bench.trained.evenly(TRAINED) if bench.trained else None
        self.pictures = {"heldout": bench.held_out, "train": sample}
        with bench.reading(any_net, 0.0) as base:
            self._base = {
                split: bench.losses(pictures, base, f"base model, {split}")
                for split, pictures in self.pictures.items()
                if pictures is not None
            }
            latents = bench.studio.draw(PROMPTS, 1, "unrelated prompts").latents
            self.drift = Drift(latents, PROMPTS, bench.base, bench.contexts, base, bench.seed)

    def measure(self, candidate: Candidate) -> Measured:
        """Measure a checkpoint. Raises `ModelError` if its file cannot be used."""
        net = candidate.load()
        with self._bench.reading(net) as predict, watched(net) as residuals:
            losses = {
                split: Losses(self._bench.losses(pictures, predict, split), self._base[split])
                for split, pictures in self.pictures.items()
                if pictures is not None
            }
            ratios, drift = residuals.overall(), self.drift.of(predict)
            remembered = self._memorisation()
        found = Measured(
            candidate, losses.get("heldout"), losses.get("train"), drift, ratios, remembered
        )
        found.flags.extend(flags_of(found))
        return found

    def _memorisation(self) -> Memorisation | None:
        """Of pictures drawn with what is attached now, from training and from held-out captions."""
        bench, size = self._bench, self._bench.latent_size
        if bench.trained is None:
            return None
        drawn = self._drawn(bench.trained, "training captions")
        trained = memorisation.of_one_size(bench.trained.latents, size)
        if bench.held_out is None:
            return memorisation.judge(drawn, trained, None, None)
        held_out = memorisation.of_one_size(bench.held_out.latents, size)
        control = self._drawn(bench.held_out, "held-out captions")
        return memorisation.judge(drawn, trained, control, held_out)

    def _drawn(self, pictures: Pictures, what: str) -> Tensor:
        options = self._bench.options
        prompts = pictures.evenly(options.captions).prompts
        seeds = max(options.seeds, -(-FEWEST // len(prompts)))
        return self._bench.studio.draw(prompts, seeds, what).latents


def measure_all(measurer: Measurer, candidates: list[Candidate]) -> list[Measured]:
    """All of them, with a progress bar; each is held against those before it, too."""
    found: list[Measured] = []
    for candidate in tqdm(candidates, "checkpoints", unit="checkpoint"):
        now = measurer.measure(candidate)
        lost = any(ranking.is_lost(now.contender, earlier.contender) for earlier in found)
        if lost and ranking.DIVERGED not in now.flags:
            now.flags.insert(0, ranking.DIVERGED)
        found.append(now)
    return found


def flags_of(found: Measured) -> list[str]:
    """What speaks against a checkpoint."""
    flags = []
    if ranking.is_diverged(found.judged.now, found.judged.base):
        flags.append(ranking.DIVERGED)
    if found.memorisation is not None and found.memorisation.flag:
        flags.append(ranking.MEMORISING)
    if found.held_out is not None and found.trained is not None:
        gap = ranking.gap(found.trained.gains, found.held_out.gains)
        if gap[1] > ranking.GAP:
            flags.append(ranking.OVERFITTING)
    return flags


def as_json(found: Measured, timesteps: int, rank: int) -> dict[str, Any]:
    """A checkpoint as the report has it."""
    losses, memory = found.judged, found.memorisation
    spans = paired.edges(timesteps)
    train = {} if found.trained is None else found.trained.comparison.as_json()
    return {
        "step": found.candidate.step,
        "kind": found.candidate.kind,
        "artifact": found.candidate.path.name,
        **losses.comparison.as_json(),
        "bands": [
            {"from": start, "to": end, **band.as_json()}
            for (start, end), band in zip(spans, paired.bands(losses.now, losses.base), strict=True)
        ],
        **({"train": train} if train else {}),
        "drift": found.drift,
        "residual_ratio": found.residuals,
        **({} if memory is None else {"memorisation": memory.as_json()}),
        "flags": found.flags,
        "rank": rank,
    }
