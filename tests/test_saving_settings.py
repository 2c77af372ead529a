"""What the settings of checkpoints and of safety may be."""

import pytest

from hn import cli
from hn.errors import OptionError

FLAGS = [
    *("--pretrained_model_name_or_path", "m", "--train_data_dir", "d"),
    *("--learning_rate", "1e-4", "--checkpointing_steps", "100"),
]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--allow_change structure", "structure: it cannot change, since the weights are of it"),
        ("--allow_change optimizer_args", "the optimizer's saved state is of it"),
        ("--allow_change picture", "(did you mean 'pictures'?): "),
        ("--checkpoints_total_limit 1", "checkpoints_total_limit must be at least 2; found 1"),
        ("--keep_every 100", "keep_every 100 is for checkpoints_total_limit"),
        ("--checkpoints_total_limit 2 --keep_every 150", "multiple of checkpointing_steps"),
        ("--loss_bound -1", "loss_bound must not be negative; found -1"),
        ("--max_rollbacks -1", "max_rollbacks must not be negative"),
        ("--rollback_rate_factor 0", "rollback_rate_factor must be above 0 and at most 1"),
        ("--learning_rate 1e-3", "learning_rate 1e-3 is high for AdamW"),
        ("--learning_rate 1e-4:10,2e-3", "or set allow_high_learning_rate if it is meant"),
        ("--width_learning_rates 768=20", "learning_rate 1e-4 is high for AdamW"),
        ("--optimizer lion_pytorch.Lion --learning_rate 1e-2", "high for lion_pytorch.Lion"),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(flags, words):
    with pytest.raises(OptionError) as error:
        cli.parse([*FLAGS, *flags.split()])
    assert words in str(error.value)


@pytest.mark.parametrize(
    "flags",
    [
        "--learning_rate 1e-3 --allow_high_learning_rate",
        "--learning_rate 9e-4",
        "--optimizer SGD --learning_rate 1",
        "--optimizer prodigyopt.Prodigy --learning_rate 1",
        "--optimizer schedulefree.AdamWScheduleFree --learning_rate 2.5e-3",
        "--checkpoints_total_limit 2 --keep_every 300",
        "--allow_change pictures seed snr_gamma resolution",
    ],
)
def test_what_can_work_is_taken(flags):
    cli.parse([*FLAGS, *flags.split()])
