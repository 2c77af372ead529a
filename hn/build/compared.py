"""A finished run judged for a comparison, and a LoRA of its size trained on the same problems."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

import hn
from hn import cli, demo
from hn.build.evaluated import build_evaluated, cached_latents
from hn.build.models import build_objective
from hn.build.pictures import build_cache
from hn.build.processes import build_layout
from hn.build.prompts import build_prompts
from hn.build.run import build_schedules
from hn.config import Config
from hn.data.batches import Batches
from hn.evaluation import lora
from hn.evaluation.bench import Bench, Options
from hn.evaluation.comparison import Judge, Result
from hn.evaluation.course import Course
from hn.training.schedule import scaled

LORA_RATE = 1e-3
SAMPLES = 8  # draws of noise for each held-out picture


def flags_of(recipe: str, seed: int, rate_factor: float, pictures: tuple[Path, Path]) -> list[str]:
    """What trains a recipe on the demo, under a name of its own, which comes second.

    Its rates are times a factor; `pictures` are to be learnt, and held out. Raises `OptionError` if
    there is no such recipe.
    """
    path = cli.find_recipe(recipe)
    rate = scaled(cli.read_toml(path).optimizer.learning_rate, rate_factor)
    trained, held_out = map(str, pictures)
    own = ["--name", f"{path.stem}-{seed}", "--seed", str(seed), "--learning_rate", rate]
    own += ["--allow_high_learning_rate"]  # the demo's model is small
    data = ["--train_data_dir", trained, "--validation_data_dir", held_out, "--resolution", "64"]
    model = ["--pretrained_model_name_or_path", demo.NAME]
    plain = ["--validation_split", "0", "--validation_prompt"]  # of ours, and no previews
    return [*own, "--config", str(path), *model, *data, *plain]


class Compared:
    """The run of a recipe, opened again; `written` and `config` as `launch.reopen` has them."""

    def __init__(
        self, recipe: str, run: Path, written: Config, config: Config, accelerator: Accelerator
    ) -> None:
        self._recipe = recipe
        self._run = run
        self._config = config
        self._accelerator = accelerator
        self._bench = build_evaluated(written, config, accelerator, Options(samples=SAMPLES)).bench
        self._judge = Judge(self._bench)

    def artifacts(self) -> Iterator[Result]:
        """What the run shares: the hypernetwork, and its average if there is one."""
        network = self._config.network
        structure = "-".join(f"{multiplier:g}" for multiplier in network.layer_structure)
        what = f"{structure} {network.activation_func}, {network.weight_initialization}"
        for tail in ("", "-ema"):
            path = self._run / f"{network.name}{tail}.safetensors"
            if path.is_file():
                with self._bench.reading(hn.load(path)):
                    found = self._judge.gain_and_drift()
                size = path.stat().st_size
                yield self._result(f"{what}{tail.replace('-', ', ')}", found, size, self._seconds())

    def loras(self) -> Iterator[Result]:
        """LoRAs of as many parameters: at the recipe's rate, and at the one usual for them."""
        net = hn.load(self._run / f"{self._config.network.name}.safetensors")
        base, course = self._bench.base, build_course(self._config, self._accelerator, self._bench)
        rank = lora.rank_of(base.unet, sum(weight.numel() for weight in net.parameters()))
        size = 4 * lora.count(base.unet, rank)  # float32, as a hypernetwork's
        own = max(stage.rate for stage in course.rates.stages)
        for rate in dict.fromkeys((own, LORA_RATE)):
            with lora.added(base.unet, rank, self._config.training.seed) as parameters:
                start = time.perf_counter()
                lora.train(base, parameters, course, rate / own)
                seconds = time.perf_counter() - start
                found = self._judge.gain_and_drift()
            yield self._result(f"LoRA, rank {rank}, rate {rate:g}", found, size, seconds)

    def _result(
        self, what: str, gain_and_drift: tuple[float, float], size: int, seconds: float
    ) -> Result:
        gain, drift = gain_and_drift
        return Result(
            recipe=self._recipe, what=what, gain=gain, drift=drift, size=size, seconds=seconds
        )

    def _seconds(self) -> float:
        """How long the steps took, of what was reported of them."""
        rows = map(json.loads, (self._run / "metrics.jsonl").read_text().splitlines())
        rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
        rounds = build_layout(self._config, self._accelerator).global_batch
        return self._config.output.logging_steps * rounds * sum(1 / rate for rate in rates)


def build_course(config: Config, accelerator: Accelerator, bench: Bench) -> Course:
    """The problems of a run, once more, and how it learnt from them."""
    cache = build_cache(config)
    latents = cached_latents(config, bench.base, cache, "train")
    assert latents is not None
    layout = build_layout(config, accelerator)
    prompts = build_prompts(config, latents.index)
    rates, bounds = build_schedules(config)
    return Course(
        batches=Batches(latents, prompts, bench.contexts, layout, config.training.seed),
        objective=build_objective(config, accelerator, bench.base),
        optimizer=config.optimizer,
        rates=rates,
        bounds=bounds,
        seed=config.training.seed,
    )
