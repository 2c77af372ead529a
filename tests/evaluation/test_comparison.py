"""Recipes side by side: judged alike, and a LoRA that learns from the same problems."""

import pytest
import torch

from hn import launch
from hn.build.compared import Compared, build_course, flags_of
from hn.build.evaluated import build_evaluated
from hn.errors import OptionError
from hn.evaluation import lora
from hn.evaluation.bench import Options
from hn.evaluation.comparison import Judge, Result, table
from hn.training.schedule import scaled
from tests import runs


@pytest.fixture(scope="module")
def run(model, pictures, tmp_path_factory):
    """A run of a tiny model with an average, held-out pictures and two micro-batches a step."""
    more = {"validation_data_dir": pictures, "use_ema": True, "gradient_accumulation_steps": 2}
    runs.forget_accelerate()
    folder = tmp_path_factory.mktemp("compared")
    assert runs.train_here(runs.settings(model, pictures, folder, **more)) == 0
    yield folder / "run"
    runs.forget_accelerate()


@pytest.fixture(scope="module")
def opened(run):
    written, config, accelerator = launch.reopen(run)
    return config, accelerator, build_evaluated(written, config, accelerator, Options()).bench


def test_a_run_gives_a_row_for_each_of_its_artifacts_and_loras(run):
    compared = Compared("mine", run, *launch.reopen(run))
    raw, average = compared.artifacts()
    assert (raw.recipe, raw.what) == ("mine", "1-2-1 mish, identity")
    assert average.what == "1-2-1 mish, identity, ema"
    assert raw.drift > average.drift > 0  # six steps in, the average lags behind
    assert raw.size == (run / "run.safetensors").stat().st_size
    assert raw.seconds > 0
    (of_both,) = compared.loras()  # the run's rate is the usual one
    assert of_both.what.endswith("rate 0.001")
    assert of_both.drift > 0
    assert of_both.size == pytest.approx(raw.size, rel=0.3)


def test_what_reads_through_nothing_gains_and_drifts_nothing(opened):
    assert Judge(opened[2]).gain_and_drift() == (0.0, 0.0)


def test_the_course_has_the_problems_of_the_run(run, opened):
    """The run began as the base model, so its first loss is the base model's on these problems."""
    bench = opened[2]
    course, predict = build_course(*opened), lora.predictor(bench.base)
    losses = []
    for batch in course.batches.at(0):
        problem = course.objective.draw(batch.latents, 0, batch.slots, batch.loss_weights)
        with torch.no_grad():
            prediction = predict(problem.noisy, problem.timesteps, batch.condition)
        losses.append(float(course.objective.loss(prediction, problem, torch.zeros(()))))
    assert len(losses) == 2
    assert sum(losses) / 2 == pytest.approx(runs.losses(run)[0], rel=1e-5)


def test_a_lora_learns_and_leaves_no_trace(opened):
    bench = opened[2]
    unet, course = bench.base.unet, build_course(*opened)
    judge, before = Judge(bench), {name: it.clone() for name, it in unet.state_dict().items()}
    with lora.added(unet, 2, seed=0) as parameters:
        assert judge.gain_and_drift() == (0.0, 0.0)
        lora.train(bench.base, parameters, course, 5.0)
        gain, drift = judge.gain_and_drift()
    assert gain > 0
    assert drift > 0
    after = unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_rank_makes_up_the_number_of_parameters(opened):
    unet = opened[2].base.unet
    for rank in (1, 3):
        wanted = lora.count(unet, rank)
        with lora.added(unet, rank, seed=0) as parameters:
            assert sum(it.numel() for it in parameters) == wanted
        assert lora.rank_of(unet, wanted + 1) == rank
    assert lora.rank_of(unet, 1) == 1


def test_the_table_has_means_and_standard_deviations():
    def result(recipe, gain):
        return Result(recipe=recipe, what="w", gain=gain, drift=0.5, size=2**20, seconds=3)

    lines = table([result("a", 0.2), result("b", 0.9), result("a", 0.4)]).splitlines()
    assert lines[0].split(" | ")[2] == "held-out gain"
    assert lines[2:] == [
        "| a | w | 0.300 ± 0.141 | 0.500 ± 0.000 | 1.00 | 3 ± 0 |",
        "| b | w | 0.900 | 0.500 | 1.00 | 3 |",
    ]


def test_the_rates_of_a_recipe_are_multiplied(tmp_path):
    assert scaled("5e-5:500, 1e-5", 10) == "0.0005:500, 0.0001"
    with pytest.raises(OptionError, match="rate"):
        scaled("fast", 10)
    flags = flags_of("a1111-classic", 3, 10, (tmp_path, tmp_path))
    assert flags[:6] == ["--name", "a1111-classic-3", "--seed", "3", "--learning_rate", "0.0001"]
    with pytest.raises(OptionError, match="the recipes are"):
        flags_of("nonsense", 0, 1, (tmp_path, tmp_path))
