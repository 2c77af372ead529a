"""Runs that share their encoded pictures: what is encoded again, and that nothing else changes."""

import shutil

import pytest
import torch
from PIL import Image

from hn.config import DataConfig
from hn.data.encoding import ALONE, Workers, encode_latents
from hn.data.images import read_folder
from hn.diffusion.base_model import BaseModel
from tests import runs, tiny

SEED = 0
NAMES = ("without", "first", "second")


@pytest.fixture(scope="module")
def base(model):
    return BaseModel.load(str(model))


@pytest.fixture
def folder(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / "pictures")


@pytest.fixture
def encode(base, folder, tmp_path, capsys):
    """Encode through the cache; returns the latents and how many pictures were found in it."""

    def encode_now(seed=SEED, **changes):
        settings = {"resolution": (16,), "latent_cache_dir": str(tmp_path / "cache")} | changes
        dataset = read_folder(folder, "error", setting="train_data_dir")
        capsys.readouterr()
        latents = encode_latents(dataset, base, DataConfig(**settings), seed)
        words = capsys.readouterr().out.split()
        return latents, int(words[words.index("latents:") + 1]) if "latents:" in words else None

    return encode_now


def same(first, second):
    pairs = ((getattr(x.moments, part) for x in (first, second)) for part in ("mean", "std"))
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "changes",
    [{}, {"random_flip": True}, {"random_crop": True}, {"latent_sampling": "random"}],
    ids=str,
)
def test_the_cache_changes_nothing(encode, changes):
    plain, nothing = encode(latent_cache_dir=None, **changes)
    first, found = encode(**changes)
    again, found_again = encode(**changes)
    assert (nothing, found, found_again) == (None, 0, 6)
    assert same(first, plain)
    assert same(again, plain)


def test_editing_one_picture_encodes_one(encode, folder):
    before, _ = encode()
    Image.open(folder / "2.png").rotate(180).save(folder / "2.png")
    after, found = encode()
    assert found == 5
    changed = (before.moments.mean != after.moments.mean).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False, False, False]


def test_a_new_name_a_new_caption_and_a_picture_more_are_no_new_pictures(encode, folder):
    encode()
    (folder / "0.txt").write_text("another caption")
    for ending in ("png", "txt"):
        (folder / f"1.{ending}").rename(folder / f"9.{ending}")
    shutil.copy(folder / "3.png", folder / "3b.png")
    (folder / "3b.txt").write_text("a twin")
    assert encode()[1] == 7


@pytest.mark.parametrize(
    "changes",
    [
        {"resolution": (24, 16)},
        {"resize_mode": "stretch"},
        {"resize_mode": "pad"},
        {"random_flip": True},
        {"random_crop": True},
        {"random_crop": True, "seed": 1},
        {"use_alpha_weights": True},
    ],
    ids=str,
)
def test_another_framing_encodes_all(encode, changes):
    encode()
    if "seed" in changes:
        encode(random_crop=True)
    assert encode(**changes)[1] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"shuffle_tags": True, "tag_dropout": 0.5, "caption_dropout": 0.5, "template": "style"},
        {"latent_sampling": "random"},
        {"seed": 1},
    ],
    ids=str,
)
def test_what_is_drawn_while_training_is_not_in_the_key(encode, changes):
    encode()
    assert encode(**changes)[1] == 6


def test_another_autoencoder_encodes_all(encode, base):
    encode()
    parameter = next(base.vae.parameters())
    before = parameter.detach().clone()
    try:
        parameter.view(-1)[0] += 1e-3
        del base.vae_fingerprint
        assert encode()[1] == 0
    finally:
        parameter.copy_(before)
        del base.vae_fingerprint
    assert encode()[1] == 6


def test_a_killed_pass_repeated_leaves_the_same_files(base, tmp_path, monkeypatch):
    """Killed in its third shard, it keeps two."""
    monkeypatch.setattr("hn.data.encoding.PER_SHARD", 4)
    folder = tiny.make_pictures(tmp_path / "set", 14)
    dataset = read_folder(folder, "error", setting="train_data_dir")

    def run(cache, workers=ALONE, limit=99):
        calls = []
        encode_images = base.encode_images

        def limited(pixels):
            calls.append(1)
            if len(calls) > limit:
                raise KeyboardInterrupt
            return encode_images(pixels)

        monkeypatch.setattr(base, "encode_images", limited)
        try:
            config = DataConfig(resolution=(16,), latent_cache_dir=str(tmp_path / cache))
            encode_latents(dataset, base, config, SEED, workers)
        finally:
            monkeypatch.setattr(base, "encode_images", encode_images)
        return len(calls)

    def files(cache):
        return {path.name: path.read_bytes() for path in (tmp_path / cache).iterdir()}

    assert run("whole") == 14
    with pytest.raises(KeyboardInterrupt):
        run("killed", limit=10)
    assert len(files("killed")) == 2
    assert run("killed") == 6
    assert files("killed") == files("whole")
    with pytest.raises(Exception, match="lacks 8 of 14"):  # the other one has not run yet
        run("shared", Workers(2, 1))
    assert run("shared", Workers(2, 0)) == 8
    assert files("shared") == files("whole")


@pytest.mark.usefixtures("fresh_accelerate")
def test_runs_with_and_without_the_cache_are_equal(model, pictures, tmp_path, capsys):
    for name, cache in zip(NAMES, (None, "cache", "cache"), strict=True):
        flags = runs.settings(
            model,
            pictures,
            tmp_path / name,
            latent_cache_dir=None if cache is None else tmp_path / cache,
            latent_sampling="random",
        )
        assert runs.train_here(flags) == 0
    assert "6 of 6 pictures are in the cache" in capsys.readouterr().out
    written = {(tmp_path / name / "run/run.pt").read_bytes() for name in NAMES}
    assert len(written) == 1


def test_two_processes_share_the_work(model, pictures, tmp_path):
    flags = runs.settings(model, pictures, tmp_path, latent_cache_dir=tmp_path / "cache")
    result = runs.run(runs.TORCHRUN, flags)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("0 of 6 pictures are in the cache") == 1
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1
