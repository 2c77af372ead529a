"""What a run would be, told without being one."""

import pytest

from hn.build.plan import drawn
from hn.config import Config, DataConfig, ModelConfig
from hn.errors import OptionError
from hn.limits import check
from hn.training.schedule import Schedule, Stage
from tests import runs


@pytest.mark.usefixtures("fresh_accelerate")
def test_it_tells_what_a_run_would_be_and_leaves_nothing(model, pictures, tmp_path, capsys):
    flags = runs.settings(model, pictures, tmp_path / "out", gradient_accumulation_steps=3)
    assert runs.train_here([*flags, "--dry_run"]) == 0
    said = capsys.readouterr().out
    for words in (
        "6 steps of 6 pictures (2 x 3 accumulated x 1 processes); 6 pictures an epoch, so 6.0",
        "16 x 16         6",
        "base model",
        "activations",
        "MiB a checkpoint",
        "ComfyUI    runs the same",
        "learning rate",
        "nothing is wrong",
    ):
        assert words in said
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fresh_accelerate")
def test_it_ends_as_a_run_would_where_something_is_wrong(model, pictures, tmp_path, capsys):
    flags = runs.settings(model, pictures, tmp_path / "out", dims=[999], learning_rate="fast")
    (tmp_path / "out").write_text("in the way")
    assert runs.train_here([*flags, "--dry_run"]) == 5
    (tmp_path / "out").unlink()
    assert runs.train_here([*flags, "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert "error: 2 things are wrong:" in error
    assert "learning_rate 'fast'" in error
    assert "dims [999] are not context widths" in error


def test_the_drawn_schedule():
    halves = Schedule((Stage(1e-3, 5), Stage(5e-4, 10)))
    assert drawn(halves, width=10, height=4) == [
        "   1.0e-03 |#####",
        "           |#####",
        "   5.0e-04 |##########",
        "   2.5e-04 |##########",
        "      step 0        9",
    ]
    assert drawn(Schedule((Stage(1e-3, 1),)), height=1)[0].endswith("|#")


def test_a_template_may_stand_for_captions_only_where_there_is_one():
    model = ModelConfig(pretrained_model_name_or_path="x/y")
    data = DataConfig(train_data_dir="set", missing_caption="template")
    with pytest.raises(OptionError, match=r"missing_caption template .* give template style"):
        check(Config(model=model, data=data))
    check(Config(model=model, data=DataConfig(**{**data.__dict__, "template": "style"})))
