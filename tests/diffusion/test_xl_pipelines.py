"""Hypernetworks in diffusers' pipelines of Stable Diffusion XL."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

import hn
from hn.errors import ModelError
from tests import tiny
from tests.diffusion.test_attention import make_net

PICTURE = Image.radial_gradient("L").resize((16, 16)).convert("RGB")
MASK = Image.linear_gradient("L").resize((16, 16))
ASKED: dict[str, dict[str, Any]] = {
    "text": {},
    "image": {"image": PICTURE, "strength": 0.9},
    "inpainting": {"image": PICTURE, "mask_image": MASK, "strength": 0.9},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two hypernetworks, strong enough to be seen, and one of another base."""
    folder = tmp_path_factory.mktemp("files")
    for name, dims in (("one", tiny.XL_DIMS), ("two", tiny.XL_DIMS), ("first", (320, 768))):
        net = make_net(dims, seed=len(name))
        for tensor in net.parameters():
            tensor.data *= 3
        hn.save(net, folder / f"{name}.pt")
    return folder


@pytest.fixture(scope="module")
def pipelines(xl) -> dict[str, Any]:
    """Three kinds around the same parts."""
    text: Any = StableDiffusionXLPipeline.from_pretrained(xl)
    found = {
        "text": text,
        "image": StableDiffusionXLImg2ImgPipeline.from_pipe(text),
        "inpainting": StableDiffusionXLInpaintPipeline.from_pipe(text),
    }
    for pipe in found.values():
        pipe.set_progress_bar_config(disable=True)
    return found


def draw(pipe, prompt, **settings):
    settings = {"num_inference_steps": 3, "output_type": "np", **settings}
    return pipe(prompt, generator=torch.Generator().manual_seed(0), **settings).images


@pytest.mark.parametrize("kind", ASKED)
def test_each_reads_through_what_a_prompt_names(pipelines, folder, kind):
    """Tags and their strengths; afterwards nothing is left."""
    pipe, asked = pipelines[kind], ASKED[kind]
    text, tags = hn.parse_prompt_tags("a red star <hypernet:one:0.7> <hypernet:two:-0.4>")
    plain = draw(pipe, text, **asked)
    with hn.attach(
        pipe.unet, [(hn.load(hn.find_hypernetwork(name, folder)), own) for name, own in tags]
    ):
        expected = draw(pipe, text, **asked)
    for name, strength in tags:
        hn.load_hypernetwork(pipe, hn.find_hypernetwork(name, folder), name, strength)
    styled = draw(pipe, text, **asked)
    assert np.array_equal(styled, expected)
    assert np.abs(styled - plain).max() > 0.03
    hn.set_hypernetworks(pipe, ["one", "two"], 0.0)
    assert np.array_equal(draw(pipe, text, **asked), plain)
    hn.unload_hypernetworks(pipe)
    assert np.array_equal(draw(pipe, text, **asked), plain)


def test_one_of_another_base_is_named(pipelines, folder):
    with pytest.raises(ModelError, match="it is for Stable Diffusion 1"):
        hn.load_hypernetwork(pipelines["text"], folder / "first.pt")
    assert hn.loaded_hypernetworks(pipelines["text"]) == []


def test_the_refiner_finishes_a_picture_through_one_of_its_own(refiner, tmp_path):
    pipe: Any = StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner)
    pipe.set_progress_bar_config(disable=True)
    net = make_net((tiny.XL_TEXT_DIMS[1], *tiny.XL_DIMS[::2]), seed=1)
    hn.save(net, tmp_path / "own.safetensors")
    plain = draw(pipe, "a star", **ASKED["image"])
    hn.load_hypernetwork(pipe, tmp_path / "own.safetensors")
    assert not np.array_equal(draw(pipe, "a star", **ASKED["image"]), plain)
