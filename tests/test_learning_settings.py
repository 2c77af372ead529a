"""What the settings of loss, optimizer and averages may be, said before anything is loaded."""

import pytest

from hn import cli
from hn.config import Config
from hn.errors import OptionError
from tests.runs import settings


def parse(**changes) -> Config:
    return cli.parse(settings("model", "pictures", "runs", **changes))  # type: ignore[arg-type]


FREE, PRODIGY = "schedulefree.AdamWScheduleFree", "prodigyopt.Prodigy"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"huber_c": 0.2}, "huber_c is for loss_type huber or smooth_l1; found l2"),
        ({"loss_type": "huber", "huber_c": 0}, "huber_c must be above 0 and at most 1; found 0"),
        ({"huber_schedule": "constant"}, "huber_schedule is for loss_type"),
        ({"snr_gamma": 0}, "snr_gamma must be greater than 0"),
        (
            {"snr_gamma": 5, "loss_weighting": "debiased"},
            "snr_gamma is for loss_weighting min_snr or soft_min_snr; found debiased",
        ),
        ({"logit_mean": 1}, "logit_mean is for timestep_sampling logit_normal; found uniform"),
        ({"timestep_sampling": "logit_normal", "logit_std": 0}, "logit_std must be greater than 0"),
        ({"timestep_range": [500, 500]}, "timestep_range must be two numbers"),
        ({"timestep_range": [500]}, "timestep_range must be two numbers"),
        ({"residual_penalty": -1}, "residual_penalty must not be negative"),
        ({"input_perturbation": "nan"}, "input_perturbation must not be negative"),
        ({"multires_noise_discount": 0.5}, "is for multires_noise_iterations; found 0"),
        (
            {"multires_noise_iterations": 6, "noise_offset": 0.1},
            "noise_offset and multires_noise_iterations both change",
        ),
        (
            {"torch_compile_backend": "aot_eager"},
            "torch_compile_backend 'aot_eager' is for torch_compile; found it off",
        ),
        ({"max_weight_norm": 0}, "max_weight_norm must be greater than 0; found 0"),
        ({"max_weight_norm": 1, "optimizer": FREE}, "give one of the two"),
        ({"use_ema": True, "optimizer": FREE}, "averages the weights by itself"),
        ({"lr_scheduler": "cosine", "optimizer": FREE}, "leave lr_scheduler cosine out"),
        ({"width_learning_rates": ["16=2"], "optimizer": PRODIGY}, "finds one rate for all"),
        ({"width_learning_rates": ["16"]}, "'16' is not width=factor"),
        ({"width_learning_rates": ["16=2", "16=3"]}, "'16=3' is not width=factor"),
        ({"width_learning_rates": ["16=-1"]}, "'16=-1' is not width=factor"),
        ({"ema_decay": 0.9}, "ema_decay 0.9 is for use_ema; found it off"),
        ({"use_ema": True, "ema_decay": 1}, "ema_decay must be between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changes, words):
    with pytest.raises(OptionError) as error:
        parse(**changes)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"snr_gamma": 5},
        {"loss_weighting": "soft_min_snr"},
        {"loss_type": "smooth_l1", "huber_c": 0.5, "huber_schedule": "exponential"},
        {"timestep_range": [0, 1000], "timestep_sampling": "logit_normal", "logit_mean": -1},
        {"use_ema": True, "ema_decay": 0.99, "width_learning_rates": ["768=1", "320=0.5"]},
        {"optimizer": PRODIGY, "learning_rate": 1, "max_weight_norm": 2},
    ],
)
def test_what_makes_sense_comes_back_from_toml(changes, tmp_path):
    config = parse(**changes)
    (tmp_path / "settings.toml").write_text(cli.to_toml(config))
    assert cli.read_toml(tmp_path / "settings.toml") == config
