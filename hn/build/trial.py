"""What tries learning rates: the objects of a run, without what saves and reports."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from hn.build.evaluated import cached_latents
from hn.build.memory import build_plan
from hn.build.models import (
    build_base_model,
    build_denoiser,
    build_objective,
    check_base_model,
)
from hn.build.pictures import (
    build_batches,
    build_cache,
    build_datasets,
    build_held_out,
    pictures_of,
)
from hn.build.preflight import build_outline
from hn.build.prompts import build_prompts
from hn.build.run import build_schedules
from hn.build.start import build_hypernetwork, build_start, tell_hosts
from hn.config import Config
from hn.data.cache.caching import Cache
from hn.data.cache.contexts import Contexts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import Denoiser
from hn.errors import DataError, OptionError
from hn.evaluation import paired, range_test
from hn.evaluation.course import Course
from hn.evaluation.paired import Pictures
from hn.evaluation.range_test import Found
from hn.limits.learning import finds_its_rate, is_schedule_free
from hn.storage import write_bytes

PICTURES = 8  # that the loss is measured on, each with `paired.DRAWS` draws


@dataclass(frozen=True)
class Trial:
    """Everything a range test takes."""

    course: Course
    denoiser: Denoiser
    base: BaseModel
    pictures: Pictures
    accelerator: Accelerator

    def run(self, steps: int) -> Found:
        """Try so many rates, one a step. The hypernetwork is spoilt afterwards."""
        network = self.denoiser.hypernetwork.train()
        taken = self.course.steps(
            self._forward, list(network.parameters()), lambda step: range_test.ramp(step, steps)
        )
        return range_test.read(taken, steps, self._loss)

    def _forward(
        self, noisy: Tensor, timesteps: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        with self.accelerator.autocast():
            return self.denoiser(noisy, timesteps, condition)

    def _loss(self) -> float:
        with self.denoiser.attachment.at_strength(1.0), self.accelerator.autocast():
            predict, seed = self.denoiser.predict, self.course.seed
            return float(paired.losses(self.pictures, predict, self.base, seed, what="loss").mean())


def find_learning_rate(config: Config, accelerator: Accelerator, folder: Path) -> Found:
    """Try as many rates as the setting says; the curve goes into the run's folder, as a page and as
    numbers. No hypernetwork is written; what is encoded is kept for the training.
    """
    found = build_trial(config, accelerator).run(config.training.find_learning_rate)
    numbers = json.dumps(found.as_json(), indent=1) + "\n"
    write_bytes(folder / "learning_rate.json", numbers.encode())
    write_bytes(folder / "learning_rate.html", found.page(config.network.name).encode())
    return found


def build_trial(config: Config, accelerator: Accelerator) -> Trial:
    """All that a run of these settings would begin with.

    Raises `OptionError` for what no single rate can be tried with, `DataError` without pictures to
    measure on.
    """
    _check(config, accelerator)
    start = build_start(config, accelerator)
    check_base_model(config)
    outline = build_outline(config)
    tell_hosts(config, accelerator, start, outline)
    datasets = build_datasets(config, accelerator)
    base = build_base_model(config, accelerator)
    hypernetwork = build_hypernetwork(config, base, start)
    plan = build_plan(config, accelerator, outline, start.hypernetwork)
    cache = build_cache(config)
    contexts = Contexts(base, cache.store)
    held_out = build_held_out(config, accelerator, datasets, base, contexts, cache)
    rates, bounds = build_schedules(config)
    course = Course(
        batches=build_batches(config, accelerator, datasets, base, contexts, cache),
        objective=build_objective(config, accelerator, base),
        optimizer=config.optimizer,
        rates=rates,
        bounds=bounds,
        seed=config.training.seed,
    )
    pictures = held_out or _trained(config, base, cache, contexts)
    denoiser = build_denoiser(config, base, hypernetwork.to(base.device), plan)
    return Trial(course, denoiser, base, pictures.evenly(PICTURES), accelerator)


def _trained(config: Config, base: BaseModel, cache: Cache, contexts: Contexts) -> Pictures:
    """Some of the training pictures."""
    latents = None if config.data.streaming else cached_latents(config, base, cache, "train")
    if latents is None:
        raise DataError("a stream has no fixed pictures to measure on: give validation_data_dir")
    rows = np.linspace(0, len(latents) - 1, min(PICTURES, len(latents))).round().astype(int)
    return pictures_of(latents, build_prompts(config, latents.index), contexts, rows.tolist())


def _check(config: Config, accelerator: Accelerator) -> None:
    name = config.optimizer.optimizer
    if finds_its_rate(name) or is_schedule_free(name):
        raise OptionError(
            f"{name} does not take one rate at a time: there is nothing to find for it"
        )
    if accelerator.num_processes > 1 or accelerator.mixed_precision == "fp16":
        raise OptionError(
            "rates are tried in one process, in mixed_precision no or bf16; found "
            f"{accelerator.num_processes} processes and {accelerator.mixed_precision}"
        )
