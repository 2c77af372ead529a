"""Training runs whose captions use the web UI's syntax and take several chunks."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from hn.data.cache.contexts import Contexts
from hn.diffusion.base_model import BaseModel
from tests import runs, tiny

CAPTIONS = [
    "a (large:1.3) [red] star",
    "red, " * 35,
    "a star BREAK (on a blue background:0.7)",
    "blue, (heart), " * 20 + "BREAK a circle",
    "",
    "a green heart <|endoftext|> on white",
]
WEBUI = {"prompt_syntax": "webui", "shuffle_tags": True, "learning_rate": "1e-2"}
BLANK = {"missing_caption": "empty"}  # one is
WEBUI |= BLANK
NEGATIVE = "blurred, " * 30

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two layers, to skip one; a new layer norm gives means of 0, which no emphasis can restore."""
    folder = tiny.make_model(tmp_path_factory.mktemp("model"))
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder", num_hidden_layers=2)
    torch.manual_seed(1)
    text_encoder = CLIPTextModel(config)
    torch.nn.init.constant_(text_encoder.final_layer_norm.bias, 0.2)
    text_encoder.save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tiny.make_pictures(tmp_path_factory.mktemp("pictures") / "set")
    for number, caption in enumerate(CAPTIONS):
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def test_contexts_of_several_lengths_are_joined(model):
    contexts = Contexts(BaseModel.load(str(model), prompt_syntax="webui"))
    short, long = contexts.stack(["a star", "red, " * 35]).context
    assert short.shape == long.shape == (3 * 32, tiny.CONTEXT_DIM)
    assert (short[32:] == short[31]).all()
    assert contexts.stack(["a star"]).context.shape == (1, 32, tiny.CONTEXT_DIM)


def test_a_run_stopped_and_resumed_equals_one_that_was_not(model, pictures, tmp_path, capsys):
    """Batches of 2 out of prompts of one to four chunks, each encoded when it is first drawn."""
    changes = WEBUI | {"checkpointing_steps": 3}
    whole = runs.settings(model, pictures, tmp_path / "whole", **changes)
    assert runs.train_here(whole) == 0
    printed = capsys.readouterr().out
    assert "3 of 6 prompts take more than one chunk of 30 tokens" in printed
    assert "1 of 6 prompts name a special token" in printed
    # the schedule ends the first run at step 3
    parts = {"learning_rate": "1e-2:3", "max_train_steps": 6}
    stopped = runs.settings(model, pictures, tmp_path / "stopped", **changes | parts)
    assert runs.train_here(stopped) == 0
    resumed = runs.settings(
        model, pictures, tmp_path / "stopped", **changes, resume_from_checkpoint="latest"
    )
    assert runs.train_here(resumed) == 0
    assert runs.losses(tmp_path / "stopped/run") == runs.losses(tmp_path / "whole/run")
    first, second = (tmp_path / f"{name}/run/run.pt" for name in ("stopped", "whole"))
    assert first.read_bytes() == second.read_bytes()


def test_it_learns_and_draws_prompts_of_unequal_length(model, pictures, tmp_path):
    flags = runs.settings(
        model,
        pictures,
        tmp_path,
        max_train_steps=30,
        **WEBUI | {"shuffle_tags": None},
        validation_data_dir=pictures,
        validation_prompt=["a (red:1.4) star", "a red star BREAK on white"],
        validation_negative_prompt=NEGATIVE,
        validation_inference_steps=2,
    )
    assert runs.train_here(flags) == 0
    last = [row for row in runs.metrics(tmp_path / "run") if "heldout_loss" in row][-1]
    assert last["heldout_gain"] > 3 * last["heldout_difference_error"] / last["heldout_base_loss"]
    picture = np.asarray(Image.open(tmp_path / "run/previews/step-00000030.png"))
    assert picture.std() > 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompt_syntax": "webui"}, "prompt_syntax: 'plain' then, 'webui' now"),
        ({"clip_skip": 2}, "clip_skip: 1 then, 2 now"),
    ],
)
def test_other_contexts_are_learnt_otherwise_and_no_continuation(
    model, pictures, tmp_path, capsys, changes, named
):
    for name, setting in (("default", {}), ("changed", changes)):
        assert (
            runs.train_here(runs.settings(model, pictures, tmp_path / name, **BLANK, **setting))
            == 0
        )
    assert runs.losses(tmp_path / "default/run") != runs.losses(tmp_path / "changed/run")
    flags = runs.settings(
        model, pictures, tmp_path / "default", max_train_steps=8, **BLANK, **changes
    )
    assert runs.train_here([*flags, "--resume_from_checkpoint", "latest"]) == 2
    assert named in capsys.readouterr().err
