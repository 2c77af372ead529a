"""Captions of every kind in real runs: what is said before training, what is refused, what is
learnt from.
"""

import pytest

from tests import runs

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

SETTINGS = {
    "wildcards": True,
    "caption_lines": True,
    "keep_separator": "|||",
    "caption_prefix": "{a|the} ",
    "missing_caption": "filename",
}


def test_prompts_that_can_be_listed_are_encoded_before_training(model, worded, tmp_path, capsys):
    """Then the text encoder can go; the held-out pictures take the first of every alternative."""
    flags = runs.settings(model, worded, tmp_path, validation_data_dir=worded, **SETTINGS)
    assert runs.train_here(flags) == 0
    said = capsys.readouterr().out
    assert said.count("captions: ") == 1
    assert (
        "captions: 8 of 6 pictures: 0 empty, 2 from file names, 2 from metadata, "
        "2 with keep_separator, 13 alternatives\n"
    ) in said
    assert any("heldout_loss" in row for row in runs.metrics(tmp_path / "run"))


def test_braces_that_make_no_wildcard_stop_before_the_model(model, worded, tmp_path, capsys):
    flags = runs.settings(model, worded, tmp_path, **SETTINGS | {"caption_prefix": "{a "})
    assert runs.train_here(flags) == 3
    error = capsys.readouterr().err
    assert "template, caption_prefix, caption_suffix: '{a [filewords]': a brace is not" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"wildcards": None}, "wildcards: True then, False now"),
        ({"caption_lines": None}, "caption_lines: True then, False now"),
        ({"caption_prefix": "x"}, "caption_prefix: '{a|the} ' then, 'x' now"),
        ({"keep_separator": None}, "keep_separator: '|||' then, '' now"),
        ({"tag_separator": ";"}, "tag_separator: ',' then, ';' now"),
    ],
)
def test_a_run_with_other_captions_is_another_run(model, worded, tmp_path, capsys, settings, named):
    assert runs.train_here(runs.settings(model, worded, tmp_path, **SETTINGS)) == 0
    changed = {**SETTINGS, "max_train_steps": 8, **settings}
    flags = runs.settings(model, worded, tmp_path, **changed)
    assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 2
    assert named in capsys.readouterr().err
