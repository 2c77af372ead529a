"""Settings: defaults < file < flags, strict, and quick to refuse."""

import resource
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from itertools import takewhile

import pytest

from hn import cli
from hn.config import SECTIONS, Config
from hn.errors import OptionError
from hn.limits import check
from tests import runs

NEEDED = ["--pretrained_model_name_or_path", "someone/model", "--train_data_dir", "pictures"]
BUCKET = ["--resize_mode", "bucket"]


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        "[training]\nseed = 5\nmax_train_steps = 7\n[optimizer]\nlearning_rate = 1e-4\n"
    )
    config = cli.parse([*NEEDED, "--config", str(file), "--seed", "6"])
    assert config.training.seed == 6
    assert config.training.max_train_steps == 7
    assert config.optimizer.learning_rate == "0.0001"
    assert config.training.train_batch_size == Config().training.train_batch_size


def test_the_resolved_configuration_reads_back_to_the_same(tmp_path):
    changes = ["--layer_structure", "1", "1.5", "1", "--validation_prompt", 'a "b"', "c\\d\né"]
    config = replace(cli.parse([*NEEDED, *changes, "--snr_gamma", "5"]), config=None)
    file = tmp_path / "resolved.toml"
    file.write_text(cli.to_toml(config), encoding="utf-8")
    assert cli.read_toml(file) == config


@pytest.mark.parametrize(
    ("written", "size"),
    [("512", (512, 512)), ("[512]", (512, 512)), ("[512, 768]", (512, 768))],
)
def test_a_resolution_is_one_number_or_width_and_height(tmp_path, written, size):
    file = tmp_path / "sizes.toml"
    file.write_text(f"[data]\nresolution = {written}\n")
    config = cli.parse([*NEEDED, "--config", str(file)])
    assert config.data.size == size
    file.write_text(cli.to_toml(config), encoding="utf-8")
    assert cli.read_toml(file).data.resolution == config.data.resolution
    numbers = written.strip("[]").split(", ")
    assert cli.parse([*NEEDED, "--resolution", *numbers]).data == config.data


@pytest.mark.parametrize("recipe", sorted(path.stem for path in cli.RECIPES.glob("*.toml")))
def test_every_recipe_is_a_complete_configuration(recipe):
    """The command in its first comment lines, as it stands there."""
    text = cli.find_recipe(recipe).read_text()
    header = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    command = header.replace("\\\n#", "").splitlines()[0].removeprefix("# ")
    launch, flags = command.split(" --", 1)
    assert launch == "accelerate launch train_hypernetwork.py"
    config = cli.parse(shlex.split(f"--{flags}"))
    check(config)
    assert config.config == recipe
    assert "held-out" in header


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[training]\nsead = 1", "unknown setting 'sead' (did you mean 'seed'?)"),
        ("[trainin]\nseed = 1", "unknown section [trainin] (did you mean 'training'?)"),
        ("seed = 1", "unknown section [seed]"),
        ("[training]\nseed = true", "training.seed must be int; found True"),
        ("[training]\nseed = 'x'", "training.seed must be int; found 'x'"),
        ("[training]\nmixed_precision = 'fp8'", "must be 'no' or 'fp16' or 'bf16'; found 'fp8'"),
        ("[network]\nlayer_structure = 3", "network.layer_structure must be"),
        ("[data]\nresolution = '512'", "data.resolution must be tuple; found '512'"),
        ("[data]\nresolution = true", "data.resolution must be int; found True"),
        ("[data]\nresolution = [512.0]", "data.resolution must be int; found 512.0"),
        ("[training", "cannot read"),
        ("[hub]\nhub_model_id = 'hf_somebodysToken'", "bad.toml holds what looks like a token"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, content, message):
    file = tmp_path / "bad.toml"
    file.write_text(content)
    with pytest.raises(OptionError) as error:
        cli.parse([*NEEDED, "--config", str(file)])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_train_steps", "0"], "max_train_steps must be at least 1; found 0"),
        (["--train_batch_size", "-1"], "train_batch_size must be at least 1; found -1"),
        (["--clip_skip", "0"], "clip_skip must be at least 1; found 0"),
        (["--resolution", "100"], "resolution must be one multiple of 8, at least 16"),
        (["--resolution", "512", "8"], "or two (width and height); found 512 8"),
        (["--resolution", "64", "64", "64"], "or two (width and height); found 64 64 64"),
        (["--random_crop", "--resize_mode", "stretch"], "random_crop is for resize_mode crop"),
        (["--crops_per_image", "3"], "crops_per_image 3 is for random_crop; found it off"),
        (["--random_crop", "--resize_mode", "pad"], "since pad leaves nothing to cut off"),
        (["--no_upscale"], "no_upscale: for resize_mode bucket; found crop"),
        (
            ["--bucket_step", "8", "--native_size", "--resize_mode", "pad"],
            "bucket_step, native_size: for resize_mode bucket; found pad",
        ),
        ([*BUCKET, "--bucket_step", "12"], "bucket_step must be a multiple of 8, 64 is usual"),
        ([*BUCKET, "--bucket_step", "0"], "bucket_step must be a multiple of 8, 64 is usual"),
        ([*BUCKET, "--max_aspect_ratio", "0.5"], "max_aspect_ratio must be at least 1; found 0.5"),
        ([*BUCKET, "--max_aspect_ratio", "inf"], "max_aspect_ratio must be at least 1; found inf"),
        ([*BUCKET, "--no_upscale", "--native_size"], "give one of them"),
        (["--filename_word_regex", "[a"], "filename_word_regex '[a' is not a regular expression"),
        (["--filename_word_regex", "(a)(b)"], "'(a)(b)' has 2 groups, so it is not one word"),
        (["--filename_word_regex", "a"], "is for missing_caption filename; found stop"),
        (["--tag_dropout", "1.5"], "tag_dropout must be from 0 to 1; found 1.5"),
        (["--keep_tags", "-1", "--shuffle_tags"], "keep_tags must not be negative; found -1"),
        (["--keep_tags", "1"], "keep_tags 1 is for shuffle_tags or tag_dropout; found neither"),
        (["--tag_separator", ""], "tag_separator must not be empty"),
        (["--keep_separator", ","], "keep_separator and tag_separator must differ; found ','"),
        (["--noise_offset", "nan"], "noise_offset must not be negative; found nan"),
        (["--snr_gamma", "0"], "snr_gamma must be greater than 0"),
        (["--checkpoints_total_limit", "1"], "checkpoints_total_limit must be at least 2"),
        (["--name", "../x"], "name may hold letters"),
        (["--dataset_name", "x"], "give one of train_data_dir, train_folders, dataset_name"),
        (["--train_folders", "x"], "cached_data_dir; found train_data_dir and train_folders"),
        (["--use_mask_files", "--use_alpha_weights"], "give one of the two"),
        (["--use_8bit_adam", "--optimizer", "SGD"], "use_8bit_adam is for the optimizer AdamW"),
        (
            ["--push_to_hub"],
            "push_to_hub needs hub_model_id: give the repository, such as me/my_st",
        ),
        (["--hub_license", "My licence"], "hub_license must be a licence's id"),
        (["--hub_token", "hf_somebodysToken"], "the command line holds what looks like a token"),
        (["--config", "nonsense"], "the recipes are: a1111-classic, demo, "),
    ],
)
def test_impossible_settings_are_refused(flags, message):
    with pytest.raises(OptionError) as error:
        cli.parse([*NEEDED, *flags])
    assert message in str(error.value)
    assert "hf_some" not in str(error.value)


def test_all_faults_are_listed_together():
    with pytest.raises(OptionError) as error:
        cli.parse(["--max_train_steps", "0", "--resolution", "5"])
    assert len(str(error.value).splitlines()) == 4


def test_setting_names_are_unique_and_documented():
    names = [f.name for section in SECTIONS for f in fields(getattr(Config(), section))]
    assert len(names) == len(set(names))


def test_help_and_import_load_no_torch_and_are_quick():
    """The limit is 0.5 s of the processor's time: how busy the machine is makes no difference."""
    code = (
        "import sys; sys.argv = ['x', '--help']; import hn; dir(hn)\n"
        "from hn import cli\n"
        "try: cli.parse()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=runs.ROOT, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    assert "--learning_rate" in result.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize(
    ("flags", "spared"),
    [
        ([], True),
        (["--optimizer", "SGD", "--quantize_base", "fp8"], True),
        (["--use_8bit_adam"], False),
        (["--optimizer", "bitsandbytes.optim.Lion8bit"], False),
        (["--quantize_base", "nf4"], False),
        (["--enable_xformers_memory_efficient_attention"], False),
    ],
)
def test_what_is_not_used_is_taken_for_absent(monkeypatch, flags, spared):
    config = cli.parse([*NEEDED, *flags])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "modules", {})
        cli.spare_imports(config)
        found = dict(sys.modules)
        cli.regain_imports()
        assert not sys.modules
    assert found == (dict.fromkeys(("bitsandbytes", "peft", "xformers")) if spared else {})


def test_an_unknown_flag_ends_with_2_and_a_suggestion():
    result = runs.run(runs.PYTHON, [*NEEDED, "--learning_rat", "1"])
    assert result.returncode == 2
    assert "--learning_rate" in result.stdout + result.stderr
