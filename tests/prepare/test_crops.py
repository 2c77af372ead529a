"""Where pictures are cut, against numbers worked out by hand from the web UI's formulas."""

import numpy as np
import pytest
from PIL import Image

from hn.prepare import crops
from hn.prepare.settings import Settings, auto_crop_sizes

SQUARE = (512, 512)


@pytest.mark.parametrize(
    ("source", "size", "box"),
    [
        ((1000, 500), SQUARE, (250, 0, 750, 500)),
        ((500, 1000), SQUARE, (0, 250, 500, 750)),
        ((300, 300), SQUARE, (0, 0, 300, 300)),
        ((101, 50), SQUARE, (25.5, 0, 75.5, 50)),
        ((600, 400), (768, 512), (0, 0, 600, 400)),
        ((600, 400), (512, 768), (600 / 2 - 400 / 3, 0, 600 / 2 + 400 / 3, 400)),
        ((400, 600), (512, 256), (0, 200, 400, 400)),
    ],
)
def test_a_fill_crop_is_the_largest_centred_box(source, size, box):
    assert crops.centred(source, size) == pytest.approx(box)


@pytest.mark.parametrize(
    ("focus", "left"), [(0, 0), (200, 0), (250, 0), (251, 1), (600, 350), (750, 500), (990, 500)]
)
def test_a_focal_crop_follows_its_focus_as_far_as_the_picture_goes(focus, left):
    assert crops.around((1000, 500), SQUARE, (focus, 10)) == (left, 0, left + 500, 500)
    assert crops.around((500, 1000), SQUARE, (10, focus)) == (0, left, 500, left + 500)


@pytest.mark.parametrize(
    ("source", "size", "overlap", "count"),
    [
        ((512, 1024), SQUARE, 0.2, 3),  # ceil((1024 - 102.4) / 409.6) = ceil(2.25)
        ((1600, 400), SQUARE, 0.2, 5),  # h = 2048: ceil((2048 - 102.4) / 409.6) = ceil(4.75)
        ((500, 1300), (500, 500), 0.2, 3),  # ceil(1200 / 400) = 3 exactly
        ((500, 1300), (500, 500), 0.0, 3),  # ceil(2.6)
        ((500, 1500), (500, 500), 0.0, 3),
        ((512, 2304), SQUARE, 0.3, 6),  # 2150.4 / 358.4 = 6; in floating point a little more
        ((500, 1300), (500, 500), 0.9, 17),  # ceil((1300 - 450) / 50) = 17
        ((512, 2048), (512, 1024), 0.2, 3),  # ceil((2048 - 204.8) / 819.2) = ceil(2.25)
        ((1000, 999), SQUARE, 0.9, 2),  # hardly too long: the two ends
    ],
)
def test_a_split_has_the_web_uis_count_and_reaches_both_ends(source, size, overlap, count):
    boxes = crops.split(source, size, overlap)
    assert len(boxes) == count
    assert boxes[0][:2] == (0, 0)
    assert boxes[-1][2:] == pytest.approx(source)
    for left, top, right, bottom in boxes:
        assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1])
        assert 0 <= left < right <= source[0]
        assert 0 <= top < bottom <= source[1]


def test_the_pieces_of_a_split_are_even():
    """500 x 1300 to squares: 3 pieces, (1300 - 500) / 2 = 400 apart; so across."""
    assert crops.split((500, 1300), (64, 64), 0.2) == [
        (0, 0, 500, 500),
        (0, 400, 500, 900),
        (0, 800, 500, 1300),
    ]
    assert crops.split((1300, 500), (64, 64), 0.2)[1] == (400, 0, 900, 500)


@pytest.mark.parametrize(
    ("source", "size", "share"),
    [
        ((512, 1024), SQUARE, 0.5),
        ((1024, 512), SQUARE, 0.5),
        ((512, 512), SQUARE, 1.0),
        ((600, 1000), (512, 256), 0.3),  # (600 * 256) / (1000 * 512)
        ((1000, 600), (512, 256), 5 / 6),  # (1000 * 256) / (600 * 512)
    ],
)
def test_the_share_that_a_crop_keeps(source, size, share):
    assert crops.kept_share(source, size) == pytest.approx(share)


@pytest.mark.parametrize(
    ("source", "objective", "size"),
    [
        # 4:3 is 1.3333: of 640 x 640 (error .25), 704 x 576 (.0833) and 768 x 512 (.111), all of
        # about the largest area allowed, one is within .1; 768 x 576 has 442,368 pixels: too many
        ((1000, 750), "area", (704, 576)),
        ((1000, 750), "error", (512, 384)),  # exactly 4:3
        ((750, 1000), "area", (576, 704)),
        ((512, 512), "area", (640, 640)),
        ((512, 512), "error", (640, 640)),  # no error in any square: the largest
        ((1000, 200), "area", None),  # 5:1; 768 x 384 is off by .6
    ],
)
def test_the_size_of_an_auto_sized_crop(source, objective, size):
    sizes = auto_crop_sizes(Settings())
    assert crops.best_size(source, sizes, threshold=0.1, objective=objective) == size


def test_the_grid_of_an_auto_sized_crop():
    """7 sides from 384 to 768; 11 of the 49 pairs have more than 409,600 pixels: those of two sides
    of at least 704, 768 or 704 with 640, and 768 with 576."""
    sizes = auto_crop_sizes(Settings())
    assert {side for size in sizes for side in size} == {384, 448, 512, 576, 640, 704, 768}
    assert len(sizes) == 49 - 4 - 4 - 2
    assert (704, 576) in sizes
    assert (768, 576) not in sizes


@pytest.mark.parametrize("source", [(3, 1000), (997, 613), (1, 1), (64, 63), (5000, 7), (50, 351)])
@pytest.mark.parametrize("size", [(512, 512), (768, 320), (24, 1000)])
def test_no_box_leaves_the_picture(source, size):
    """Not by one rounding either, as the last piece of 50 x 351 would."""
    picture = Image.new("RGB", source)
    boxes = [crops.centred(source, size), crops.around(source, size, (1e9, 1e9))]
    if crops.kept_share(source, size) > 0.01:
        boxes += crops.split(source, size, 0.35)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= source[0]
        assert 0 <= top < bottom <= source[1]
        crop = crops.Crop("any", (left, top, right, bottom), size)
        assert crop.cut(picture).size == size


def test_a_crop_shows_what_is_in_its_box():
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 120:] = 255
    picture = Image.fromarray(pixels)
    black = crops.Crop("any", (0, 0, 100, 100), (50, 50))
    white = crops.Crop("any", (130, 0, 200, 70), (140, 140))
    assert (black.scale, white.scale) == (0.5, 2.0)
    assert black.cut(picture).getextrema() == ((0, 0),) * 3
    assert white.cut(picture).getextrema() == ((255, 255),) * 3


def test_the_whole_picture_keeps_its_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    made = crops.Crop("any", crops.whole((17, 31)), (17, 31)).cut(Image.fromarray(noise))
    assert np.array_equal(np.asarray(made), noise)
