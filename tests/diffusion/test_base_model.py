"""Loading base models from a folder, and what they encode."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from hn.diffusion.base_model import BaseModel
from hn.errors import ModelError
from tests import tiny

PROMPTS = ["a large red circle on a blue background", ""]


@pytest.fixture(scope="module")
def base(model):
    return BaseModel.load(str(model))


def test_it_knows_its_widths_and_prediction(base, tmp_path):
    assert base.dims == tiny.DIMS
    assert base.prediction == "epsilon"
    v_model = tiny.make_model(tmp_path / "v", prediction_type="v_prediction")
    assert BaseModel.load(str(v_model)).prediction == "v_prediction"


def test_prompts_are_encoded_as_diffusers_does(base, model):
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    for prompt in PROMPTS:
        expected, _ = pipeline.encode_prompt(prompt, torch.device("cpu"), 1, False)
        assert torch.equal(base.encode_prompts([prompt])[0].context, expected)


def test_pictures_come_back_through_the_autoencoder(base):
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments = base.encode_images(pixels)
    expected = base.vae.encode(pixels).latent_dist
    assert moments.mean.shape == (2, 4, 8, 8)
    assert torch.equal(moments.mean, expected.mean * base.scaling_factor)
    assert torch.equal(moments.std, expected.std * base.scaling_factor)
    pictures = base.decode(moments.mean)
    assert [picture.size for picture in pictures] == [(16, 16)] * 2


def test_a_parked_autoencoder_decodes_and_stays_parked(model):
    base = BaseModel.load(str(model))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    (before,) = base.decode(latents)
    base.park_vae()
    (after,) = base.decode(latents)
    assert before.tobytes() == after.tobytes()
    assert base.vae.device.type == "cpu"


def test_what_was_freed_says_so(model):
    base = BaseModel.load(str(model))
    base.free_vae()
    base.free_text_encoder()
    with pytest.raises(ModelError, match="autoencoder was freed"):
        base.encode_images(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ModelError, match="text encoder was freed"):
        base.encode_prompts(["x"])


def test_long_prompts_are_counted(base):
    assert base.text_encoder.excess_tokens("red") == 0
    assert base.text_encoder.excess_tokens("red " * 40) == 40 + 2 - 32


def test_another_prediction_is_refused(tmp_path):
    model = tiny.make_model(tmp_path / "sample", prediction_type="sample")
    with pytest.raises(ModelError, match="prediction_type is 'sample'"):
        BaseModel.load(str(model))
