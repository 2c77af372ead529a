"""Latents of a picture: the web UI's numbers from its moments and its noise."""

import shutil

import datasets
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

from hn.config import DataConfig
from hn.data.cache import latents as sampling
from hn.data.cache.latents import Latents
from hn.data.pictures.images import read_folder
from hn.diffusion.base_model import BaseModel
from tests import caches, golden

GOLDEN = golden.read_tensors("images/images.safetensors")
FILE = "rgb_32x32.png"


def key(method: str) -> str:
    return f"{FILE}|32x32|varsize=0|weight=0|{method}"


@pytest.fixture
def encode(model, tmp_path, monkeypatch):
    """Latents of the golden picture by our code; the autoencoder gives the recorded moments."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    shutil.copy(golden.FOLDER / "images" / FILE, tmp_path / "set")
    dataset = read_folder(tmp_path / "set", "filename", setting="train_data_dir")
    base = BaseModel.load(str(model))

    def run(method: str) -> Latents:
        moments = GOLDEN[f"{key(method)}|moments"][None]
        output = AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))
        monkeypatch.setattr(base.vae, "encode", lambda pixels: output)
        config = DataConfig(resolution=(32,), resize_mode="stretch", latent_sampling=method)
        return caches.encode(tmp_path / f"latents {method}", dataset, base, config)

    return run


@pytest.fixture
def noise_of(monkeypatch):
    """Lets our sampling draw from one generator with the web UI's seed, as it does."""

    def seed(number: int) -> None:
        running = torch.Generator().manual_seed(number)
        monkeypatch.setattr(sampling.rng, "generator", lambda *position: running)

    return seed


def assert_close(found, name):
    torch.testing.assert_close(found, GOLDEN[name], rtol=0, atol=5e-7)


def test_deterministic_latents_are_the_scaled_mean(encode):
    latents = encode("deterministic")
    mean = GOLDEN[f"{key('deterministic')}|moments"][:4] * 0.18215
    torch.testing.assert_close(latents.moments(0)[0], mean, rtol=0, atol=0)
    for step in (0, 1):
        assert_close(caches.sample(latents, 0, 0, step, 0), f"{key('deterministic')}|latent")


def test_latents_sampled_once_are_the_web_uis_for_its_noise(encode, noise_of):
    noise_of(55)
    assert_close(caches.sample(encode("once"), 0, 0, 0, 0), f"{key('once')}|latent")


def test_latents_sampled_at_random_are_the_web_uis_at_each_access(encode, noise_of):
    latents = encode("random")
    noise_of(56)
    assert_close(caches.sample(latents, 0, 0, 0, 0), f"{key('random')}|access1")
    assert_close(caches.sample(latents, 0, 0, 1, 0), f"{key('random')}|access2")


def test_only_random_latents_differ_between_accesses(encode):
    for method, differ in (("once", False), ("deterministic", False), ("random", True)):
        latents = encode(method)
        first, second = (caches.sample(latents, 0, 0, step, 0) for step in (0, 1))
        assert torch.equal(first, second) is not differ
    accesses = (GOLDEN[f"{key('random')}|access{number}"] for number in (1, 2))
    assert not torch.equal(*accesses)


def test_the_spread_is_clamped_as_in_latent_diffusion(encode, monkeypatch):
    """Log-variances beyond -30 and 20 are cut, so that none becomes infinite."""
    moments = torch.zeros(8, 4, 4)
    moments[4] = -100
    moments[5] = 100
    monkeypatch.setitem(GOLDEN, f"{key('once')}|moments", moments)
    found = encode("once").moments(0)[1][:, 0, 0]
    expected = torch.tensor([-30.0, 20.0, 0.0, 0.0]).mul(0.5).exp() * 0.18215
    torch.testing.assert_close(found, expected)
