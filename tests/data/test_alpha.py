"""The alpha channel as loss weight: the web UI's numbers, without its two faults."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hn.config import DataConfig
from hn.data.pictures.checks import check_pictures
from hn.data.pictures.decoding import Example, open_picture, open_with_alpha
from hn.data.pictures.framing import loss_weights, picture_shares, to_levels, to_tensor
from hn.data.pictures.images import read_folder
from hn.diffusion.base_model import BaseModel
from hn.errors import DataError
from tests import caches, tiny
from tests.data.test_framing import GOLDEN, frame, golden_example, levels

OBLONG = "alpha_gradient_64x32.png|16x16|varsize=1|weight=1|once"
WEIGHTED = [
    key.removesuffix("|weight")
    for key in GOLDEN
    if key.endswith("|weight") and not key.startswith(OBLONG)
]
STRETCHED = [key for key in WEIGHTED if "varsize=0" in key]
GREEN = (0, 255, 0)


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def base(model):
    return BaseModel.load(str(model))


def rising(size=(64, 32)) -> Image.Image:
    """An alpha channel that rises from 0 at the left to 255 at the right."""
    row = np.linspace(0, 255, size[0]).round().astype(np.uint8)
    return Image.fromarray(np.tile(row, (size[1], 1)))


def opened(picture: Image.Image, **settings) -> tuple[Image.Image, Image.Image]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **settings)
    return open_with_alpha(Example("it.png", {"bytes": buffer.getvalue(), "path": None}, ""))


def weights_of(alpha, seen, shape) -> torch.Tensor:
    return weights_of_all(alpha, [seen], shape)[0]


def weights_of_all(alpha, frames, shape) -> torch.Tensor:
    levels = torch.stack([to_levels(alpha, seen, shape) for seen in frames])
    return loss_weights(levels, torch.stack([picture_shares(seen, shape) for seen in frames]))


@pytest.mark.parametrize("key", WEIGHTED)
def test_the_weights_of_a_stretched_picture_are_the_web_uis(key):
    example, size = golden_example(key)
    _, alpha = open_with_alpha(example)
    expected = GOLDEN[f"{key}|weight"]
    own_size = "varsize=1" in key
    seen = frame(alpha, alpha.size if own_size else size, resize_mode="stretch")
    found = weights_of(alpha, seen, tuple(expected.shape[-2:]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", STRETCHED)
def test_the_colours_are_those_beneath_the_alpha_as_in_the_web_ui(key):
    example, size = golden_example(key)
    picture, _ = open_with_alpha(example)
    seen = frame(picture, size, resize_mode="stretch")
    assert torch.equal(levels(to_tensor(picture, seen)), GOLDEN[f"{key}|pixels"])


@pytest.mark.parametrize("level", [1, 128, 255])
def test_a_constant_alpha_gives_ones(level):
    """There it gives 0/0."""
    alpha = Image.new("L", (32, 32), level)
    assert weights_of(alpha, frame(alpha, (16, 16)), (8, 8)).unique().tolist() == [1.0]


@pytest.mark.parametrize(("size", "shape"), [((64, 32), (4, 8)), ((16, 64), (8, 2))])
def test_the_weights_of_an_oblong_picture_stand_upright(size, shape):
    """There height and width are taken for each other."""
    alpha = rising(size)
    found = weights_of(alpha, frame(alpha, size), shape)[0]
    assert found.shape == shape
    assert torch.equal(found, found[:1].expand(shape))
    assert (found[0].diff() > 0).all()
    assert (found.min().item(), found.mean().item()) == (0.0, pytest.approx(1))


def test_the_web_uis_weights_of_an_oblong_picture_are_ours_with_the_sides_mistaken():
    _, alpha = open_with_alpha(golden_example(OBLONG)[0])
    height, width = 4, 8
    mistaken = weights_of(alpha, frame(alpha, alpha.size, resize_mode="stretch"), (width, height))
    expected = GOLDEN[f"{OBLONG}|weight"]
    torch.testing.assert_close(mistaken.reshape(1, height, width), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", [(0.0, 0.5), (0.3, 0.5), (1.0, 0.5)])
@pytest.mark.parametrize("size", [(24, 24), (16, 40)])
def test_the_weights_lie_where_the_crop_lies(place, size):
    """As if the alpha channel was resized, cropped, and resized again, up to rounding."""
    alpha = rising((100, 60))
    seen = frame(alpha, size, place)
    shape = size[1] // 8, size[0] // 8
    found = to_levels(alpha, seen, shape)[0]
    crop = alpha.resize(seen.resized, seen.resample).crop(seen.box)
    twice = np.array(crop.resize((shape[1], shape[0]), Image.Resampling.BOX))
    assert (found - torch.from_numpy(twice).float()).abs().max() <= 4  # of 255


@pytest.mark.parametrize("alpha", [Image.new("L", (40, 20), 200), rising((40, 20))])
def test_padding_is_not_learnt_from_whatever_the_alpha_says(alpha):
    """40 x 20 in 32 x 32 is 32 x 16: of 4 rows of latents the first and the last are padding."""
    found = weights_of(alpha, frame(alpha, (32, 32), resize_mode="pad"), (4, 4))[0]
    assert found[[0, 3]].unique().tolist() == [0]
    assert found.mean().item() == pytest.approx(1)
    assert torch.equal(found[1], found[2])
    steps = found[1].diff()
    assert (steps > 0).all() if alpha.getextrema() == (0, 255) else not steps.any()


def test_a_place_that_is_partly_padding_counts_for_its_part():
    """40 x 30 in 32 x 32 is 32 x 24: the outer rows are half padding."""
    alpha = Image.new("L", (40, 30), 255)
    found = weights_of(alpha, frame(alpha, (32, 32), resize_mode="pad"), (4, 4))[0]
    expected = torch.tensor([0.5, 1, 1, 0.5])[:, None].expand(4, 4) / 0.75
    torch.testing.assert_close(found, expected)


def test_the_lowest_alpha_is_sought_in_the_picture():
    """And not in its padding: 128 at the left of a picture is nothing, as without padding."""
    alpha = rising((40, 20)).point(lambda level: 128 + level // 2)
    padded = weights_of(alpha, frame(alpha, (32, 32), resize_mode="pad"), (4, 4))[0]
    alone = weights_of(alpha, frame(alpha, (32, 16)), (2, 4))[0]
    assert padded[1, 0] == alone[0, 0] == 0
    assert (padded[1:3] / 2 - alone).abs().max() < 0.05


def test_a_crop_of_the_hidden_part_is_not_learnt_from():
    alpha = Image.new("L", (32, 16))
    alpha.paste(255, (24, 0, 32, 16))
    frames = [frame(alpha, (16, 16), (across, 0.5)) for across in (0.0, 1.0)]
    found = weights_of_all(alpha, frames, (2, 2))
    assert found[0].max() == 0
    assert found.mean().item() == pytest.approx(1)


def test_the_transparent_colour_of_a_palette_counts():
    """There it is not seen."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, *GREEN])
    picture.putpixel((1, 0), 1)
    rgb, alpha = opened(picture, transparency=1)
    assert rgb.getpixel((1, 0)) == GREEN
    assert weights_of(alpha, frame(alpha, (2, 1)), (1, 2)).flatten().tolist() == [
        2.0,
        0.0,
    ]


def test_the_alpha_is_turned_with_the_picture():
    picture = Image.new("RGBA", (32, 16), (255, 0, 0, 0))
    picture.paste((*GREEN, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right: the left half becomes the upper
    rgb, alpha = opened(picture, exif=exif)
    assert rgb.size == alpha.size == (16, 32)
    assert (rgb.getpixel((8, 8)), alpha.getpixel((8, 8))) == (GREEN, 255)
    assert alpha.getpixel((8, 24)) == 0


def test_a_picture_without_alpha_is_opaque():
    rgb, alpha = opened(Image.new("RGB", (4, 4), GREEN))
    assert (rgb.getpixel((0, 0)), alpha.getextrema()) == (GREEN, (255, 255))


def encode(base, folder, **settings):
    config = DataConfig(resolution=(16,), **{"use_alpha_weights": True, **settings})
    dataset = read_folder(folder, "stop", setting="train_data_dir")
    return caches.encode(folder.parent / "cache", dataset, base, config)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crops", [1, 3])
def test_every_variant_has_the_weights_of_what_it_shows(base, tmp_path, crops, flip):
    folder = tiny.make_pictures(tmp_path / "set", 2, alpha=rising)
    latents = encode(base, folder, random_crop=crops > 1, crops_per_image=crops, random_flip=flip)
    found = caches.all_weights(latents)
    assert found.shape == (2, latents.variants, 1, 8, 8)
    assert latents.variants == crops * (1 + flip)
    for picture in found:
        assert picture.min() == 0
        assert picture.mean().item() == pytest.approx(1)
    assert (found[:, :crops].diff(dim=-1) >= 0).all()
    if flip:
        assert torch.equal(found[:, crops:], found[:, :crops].flip(-1))
    drawn = latents.weights([1, 0, 1], [0, crops - 1, 0])
    assert torch.equal(drawn, found[[1, 0, 1], [0, crops - 1, 0]])


def test_padding_is_weighted_without_the_setting(base, tmp_path):
    """40 x 20 in 16 x 16 is 16 x 8."""
    folder = tiny.make_pictures(tmp_path / "set", 2, size=(40, 20))
    dataset = read_folder(folder, "stop", setting="train_data_dir")
    config = DataConfig(resolution=(16,), resize_mode="pad", random_flip=True)
    found = caches.all_weights(caches.encode(tmp_path / "cache", dataset, base, config))
    assert found.shape == (2, 2, 1, 8, 8)
    rows = torch.tensor([0, 0, 2, 2, 2, 2, 0, 0]).float()
    assert torch.equal(found, rows[:, None].expand(2, 2, 1, 8, 8))


def test_without_the_setting_there_are_no_weights_and_white_shows(base, tmp_path):
    folder = tiny.make_pictures(tmp_path / "set", 1, alpha=rising)
    dataset = read_folder(folder, "stop", setting="train_data_dir")
    latents = encode(base, folder, use_alpha_weights=False)
    assert latents.weights([0], [0]) is None
    white = open_picture(Example("0.png", dataset[0]["image"], ""))
    expected = base.encode_images(to_tensor(white, frame(white, (16, 16)))[None]).mean
    torch.testing.assert_close(caches.means(latents)[0], expected)
    assert not torch.allclose(caches.means(encode(base, folder))[0], expected)


def test_pictures_that_are_weighted_evenly_are_said(base, tmp_path, capsys):
    folder = tiny.make_pictures(tmp_path / "set", 1)
    tiny.make_pictures(tmp_path / "more", 1, alpha=rising)
    for path in (tmp_path / "more").iterdir():
        path.rename(folder / f"rising{path.suffix}")
    latents = encode(base, folder)
    weights = latents.weights([0, 1], [0, 0])
    assert weights[0].unique().tolist() == [1.0]
    assert weights[1].min() == 0
    said = capsys.readouterr().out
    assert "weighted evenly, since their alpha is constant or missing: 1 ('0.png')" in said


def right_edge(size) -> Image.Image:
    alpha = Image.new("L", size)
    alpha.paste(255, (size[0] - 1, 0, *size))
    return alpha


def test_a_crop_that_shows_nothing_opaque_is_refused_by_name(base, tmp_path):
    folder = tiny.make_pictures(tmp_path / "set", 2, size=(60, 16), alpha=right_edge)
    with pytest.raises(
        DataError, match=r"(?s)2 pictures .*0\.png: .*resize_mode to pad or stretch.*1\.png"
    ):
        encode(base, folder)
    assert caches.all_weights(encode(base, folder, resize_mode="stretch")).max() > 1


def test_a_fully_transparent_picture_stays_refused(tmp_path):
    folder = tiny.make_pictures(tmp_path / "set", 1, alpha=lambda size: Image.new("L", size))
    dataset = read_folder(folder, "stop", setting="train_data_dir")
    with pytest.raises(DataError, match=r"0\.png: .*fully transparent"):
        check_pictures(dataset)
    with pytest.raises(DataError, match="fully transparent"):
        open_with_alpha(Example("0.png", dataset[0]["image"], ""))
