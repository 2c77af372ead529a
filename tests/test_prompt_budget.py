"""Whether prompts are encoded beforehand: decided by what fits, and said."""

import pytest

from hn.diffusion.base_model import BaseModel
from tests import runs

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
SHUFFLED = {"shuffle_tags": True, "tag_dropout": 0.2, "caption_dropout": 0.2}


@pytest.fixture
def train(model, pictures, tmp_path, capsys):
    def train_now(**changes):
        flags = runs.settings(model, pictures, tmp_path, max_train_steps=2, **changes)
        code = runs.train_here(flags)
        said = capsys.readouterr()
        return code, [line for line in said.out.splitlines() if line.startswith("text:")], said.err

    return train_now


def test_a_fixed_set_is_encoded_once(train):
    assert train()[:2] == (0, ["text: 7 prompts encoded once (0 MiB); text encoder let go"])


def test_too_many_prompts_are_encoded_when_they_are_drawn(train, model):
    size = BaseModel.load(str(model)).text_encoder.context_nbytes
    code, said, _ = train(text_cache_gib=5 * size / 2**30)
    assert (code, len(said)) == (0, 1)
    assert said[0].startswith("text: more than 5 prompts do not fit text_cache_gib, so the")


def test_what_is_drawn_anew_needs_the_text_encoder(train):
    code, said, _ = train(**SHUFFLED)
    assert code == 0
    assert said[0].startswith("text: prompts are drawn anew for every sample, so the text encoder")
    assert "--prompt_variants" in said[0]


def test_a_bounded_number_of_variants_does_not(train):
    code, said, _ = train(**SHUFFLED, prompt_variants=2)
    assert code == 0
    assert said[0].endswith("text encoder let go")


def test_variants_that_do_not_fit_are_refused(train, model):
    size = BaseModel.load(str(model)).text_encoder.context_nbytes
    code, _, error = train(**SHUFFLED, prompt_variants=5, text_cache_gib=20 * size / 2**30)
    assert code == 2
    assert "prompt_variants 5 of 6 pictures take" in error
    assert "give at most 3" in error


def test_variants_of_what_never_varies_are_refused(train):
    with pytest.raises(ValueError, match="prompt_variants 3 is for shuffle_tags, tag_dropout"):
        train(prompt_variants=3)
