"""Stage strings as the web UI reads them, and what we multiply them with."""

import math

import pytest

from hn.errors import OptionError
from hn.training.schedule import Schedule, Stage, parse, parse_positive
from tests import golden

CASES = golden.read_json("schedule.json")
# (string, max_steps, start_step): where the web UI trains one step too many, we do not
ONE_STEP_LESS = {
    ("0.001:5,0.0001:10", 5, 0),  # a stage ends at max_steps and another follows
    ("0.1:10, 0.01:5, 0.001:20", 20, 0),  # steps do not rise
    ("0.1:5, 0.01:4, 0.02:3, 0.001:20", 20, 0),
}
# It starts behind its end: the web UI calls that start the end. Neither trains a step.
OVER_BEFORE_IT_STARTS = {("0.001", 20, 25), ("0.001:-1", 20, 25)}


def key_of(case):
    return case["learn_rate"], case["max_steps"], case["start_step"]


VALID = {key_of(case): case for case in CASES["valid"]}
AS_THE_WEB_UI = [key for key in VALID if key not in ONE_STEP_LESS | OVER_BEFORE_IT_STARTS]
INVALID = [key_of(case) for case in CASES["invalid"] if isinstance(case["learn_rate"], str)]


def trained_rates(case) -> dict[int, float]:
    """The web UI's rate of every step it trained."""
    spans = case["lr_by_step"]
    return {step: span["lr"] for span in spans for step in range(span["from"], span["to"] + 1)}


@pytest.mark.parametrize("key", VALID, ids=str)
def test_stages_are_read_as_the_web_ui_reads_them(key):
    text, max_steps, start_step = key
    stages = parse(text, max_steps, start_step=start_step)
    assert [[stage.rate, stage.until] for stage in stages] == VALID[key]["stages"]


@pytest.mark.parametrize("key", AS_THE_WEB_UI, ids=str)
def test_every_step_has_the_web_uis_rate_and_the_same_one_is_the_last(key):
    text, max_steps, start_step = key
    schedule = Schedule(parse(text, max_steps, start_step=start_step))
    expected = trained_rates(VALID[key])
    assert {step: schedule.rate(step) for step in range(start_step, schedule.end)} == expected
    assert schedule.end == VALID[key]["finished_at_step"]


def test_the_latest_stage_is_the_end():
    assert Schedule(parse("0.1:8, 0.01:4", 20)).end == 8


def test_where_a_stage_ends_at_the_last_step_we_stop_there():
    schedule = Schedule(parse("0.001:5,0.0001:10", 5))
    assert VALID["0.001:5,0.0001:10", 5, 0]["finished_at_step"] == 6
    assert schedule.end == 5


@pytest.mark.parametrize("text", ["0.1:10, 0.01:5, 0.001:20", "0.1:5, 0.01:4, 0.02:3, 0.001:20"])
def test_a_stage_that_is_over_before_it_begins_is_never_used(text):
    theirs = trained_rates(VALID[text, 20, 0])
    schedule = Schedule(parse(text, 20))
    skipped = {stage.rate for stage in schedule.stages[1:-1]}
    for step, rate in theirs.items():
        assert schedule.rate(step) == (0.001 if rate in skipped else rate)
    assert skipped & set(theirs.values())
    assert schedule.end == 20


@pytest.mark.parametrize("key", sorted(OVER_BEFORE_IT_STARTS), ids=str)
def test_a_schedule_that_starts_behind_its_end_trains_nothing(key):
    assert Schedule(parse(key[0], key[1], start_step=key[2])).end < key[2]
    assert VALID[key]["steps_done"] == 0


@pytest.mark.parametrize("key", INVALID, ids=repr)
def test_what_the_web_ui_refuses_is_refused_by_name(key):
    text, max_steps, start_step = key
    with pytest.raises(OptionError, match=r"^the_rate '.*stages such as"):
        parse(text, max_steps, start_step=start_step, setting="the_rate")


def test_the_faulty_item_is_named():
    with pytest.raises(OptionError, match=r"'0\.1:1e3' is not rate or rate:step"):
        parse("0.5:3, 0.1:1e3", 20)


@pytest.mark.parametrize("text", ["0", "-1e-5", "nan", "inf", "1e-5:10, 0:20"])
def test_a_rate_that_is_no_positive_number_is_refused(text):
    with pytest.raises(OptionError, match="not a positive number"):
        parse_positive(text, 100, setting="learning_rate")


def test_a_warm_up_rises_to_the_full_rate():
    schedule = Schedule((Stage(1.0, 10),), warmup_steps=4)
    assert [schedule.rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_cosine_falls_from_the_full_rate_to_zero_after_the_warm_up():
    schedule = Schedule((Stage(2.0, 12),), warmup_steps=2, cosine=True)
    assert schedule.rate(2) == 2.0
    assert schedule.rate(7) == pytest.approx(1.0)
    assert schedule.rate(11) == pytest.approx(1 + math.cos(math.pi * 0.9))
    assert schedule.rate(12) == pytest.approx(0)
    assert schedule.rate(100) == pytest.approx(0)


def test_stages_multiply_with_the_warm_up():
    schedule = Schedule((Stage(1.0, 1), Stage(0.5, 10)), warmup_steps=2)
    assert [schedule.rate(step) for step in range(3)] == [0.5, 0.5, 0.5]


def test_a_warm_up_longer_than_the_run_does_not_fail():
    schedule = Schedule((Stage(1.0, 3),), warmup_steps=10, cosine=True)
    assert [schedule.rate(step) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert 0 <= schedule.rate(10) <= 1
