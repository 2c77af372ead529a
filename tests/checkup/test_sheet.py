"""The contact sheet: where everything lies, and in which colour."""

import numpy as np
import pytest
from PIL import Image, ImageChops

from hn.checkup import sheet
from hn.checkup.captions import Ruler
from hn.checkup.checkup import check_up, evenly
from hn.checkup.findings import FINDINGS
from hn.config import DataConfig
from tests.checkup.drawn import drawing, write

TEAL = (0, 128, 128)
GAP, TITLE, CELL = 16, 64, 200


def drawn(folder, shown=100, **settings):
    data = DataConfig(train_data_dir=str(folder), **({"resolution": (64,)} | settings))
    report, thumbnails = check_up(data, Ruler(None), top=5, shown=shown)
    return sheet.draw(report, thumbnails), thumbnails


def wide(folder):
    return write(folder, a__png=Image.new("RGB", (400, 200), TEAL))


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, (664, 368)), (3, (664, 368)), (5, (1096, 368)), (6, (1312, 368)), (7, (1312, 672))],
)
def test_the_size_follows_from_the_number_of_pictures(count, size, tmp_path):
    folder = write(tmp_path / "set", **{f"{i}__png": drawing(i) for i in range(count)})
    assert drawn(folder)[0].size == size


def test_the_frame_lies_around_what_the_model_sees(tmp_path):
    """400 x 200 for squares: the middle half, 100 pixels of a thumbnail of 200 x 100."""
    picture, _ = drawn(wide(tmp_path / "set"))
    left, top = GAP, TITLE + 50
    edges = [(50, 0), (149, 0), (50, 99), (149, 99), (51, 50), (148, 50), (100, 1), (100, 98)]
    assert {picture.getpixel((left + x, top + y)) for x, y in edges} == {sheet.FRAME}
    assert {picture.getpixel((left + x, top + 50)) for x in (52, 100, 147)} == {TEAL}
    outside = {picture.getpixel((left + x, top + 50)) for x in (0, 49, 150, 199)}
    assert len(outside) == 1
    pale = np.array(outside.pop())
    assert (pale > np.array(TEAL) + 80).all()
    assert picture.getpixel((left + 100, top - 2)) == sheet.BED


def test_the_frame_of_a_stretched_picture_is_its_border(tmp_path):
    picture, _ = drawn(wide(tmp_path / "set"), resize_mode="stretch")
    corners = [(0, 0), (199, 0), (0, 99), (199, 99)]
    found = {picture.getpixel((GAP + x, TITLE + 50 + y)) for x, y in corners}
    assert found == {sheet.FRAME}
    assert picture.getpixel((GAP + 3, TITLE + 60)) == TEAL


def test_the_frame_of_a_padded_picture_is_its_border(tmp_path):
    padded, _ = drawn(wide(tmp_path / "set"), resize_mode="pad")
    stretched, _ = drawn(tmp_path / "set", resize_mode="stretch")
    cell = GAP, TITLE, GAP + CELL, TITLE + CELL
    assert padded.crop(cell) == stretched.crop(cell)


def test_the_frame_of_a_bucket_is_what_is_trained_on(tmp_path):
    """400 x 200 for 80 x 48 of at most 4096 pixels: 333 of the width, 167 of 200 pixels."""
    picture, _ = drawn(wide(tmp_path / "set"), resize_mode="bucket", bucket_step=16)
    line = [picture.getpixel((GAP + x, TITLE + 100)) for x in range(200)]
    assert [x for x, colour in enumerate(line) if colour == sheet.FRAME] == [17, 18, 181, 182]


def test_the_frame_has_the_shape_of_the_training_size(tmp_path):
    """400 x 200 for 64 x 128: a quarter of the width, 50 of 200 pixels."""
    picture, _ = drawn(wide(tmp_path / "set"), resolution=(64, 128))
    line = [picture.getpixel((GAP + x, TITLE + 100)) for x in range(200)]
    assert [x for x, colour in enumerate(line) if colour == sheet.FRAME] == [75, 76, 123, 124]


def test_what_cannot_be_read_keeps_its_place(tmp_path):
    folder = write(tmp_path / "set", a__png=drawing(1), b__png=b"nothing", c__png=drawing(3))
    picture, thumbnails = drawn(folder)
    assert [small is None for small in thumbnails.values()] == [False, True, False]
    assert picture.getpixel((GAP + CELL + GAP, TITLE)) == sheet.RED
    words = picture.crop((GAP + CELL + GAP + 5, TITLE + 5, 2 * (GAP + CELL) - 5, TITLE + 60))
    assert sheet.RED in words.convert("RGB").get_flattened_data()


def test_a_small_picture_is_enlarged_without_being_blurred(tmp_path):
    _, thumbnails = drawn(write(tmp_path / "set", a__png=drawing(1, (8, 8))))
    assert thumbnails["a.png"].size == (200, 200)
    inner = thumbnails["a.png"].crop((25, 25, 175, 175))
    assert len(set(inner.get_flattened_data())) <= 36


def test_slivers_have_a_thumbnail(tmp_path):
    folder = write(tmp_path / "set", a__png=Image.new("RGB", (900, 1)), b__png=drawing(1, (2, 900)))
    _, thumbnails = drawn(folder)
    assert [small.size for small in thumbnails.values()] == [(200, 1), (1, 200)]


def test_of_many_pictures_some_are_chosen_evenly(tmp_path):
    folder = write(tmp_path / "set", **{f"{i}__png": drawing(i) for i in range(9)})
    picture, thumbnails = drawn(folder, shown=3)
    assert list(thumbnails) == ["0.png", "4.png", "8.png"]
    assert picture.size == (664, 368)
    everything, _ = drawn(folder)
    title = (0, 0, 664, 36)  # that says so
    assert ImageChops.difference(picture.crop(title), everything.crop(title)).getbbox()


@pytest.mark.parametrize("count", [1, 2, 5, 99, 100, 101])
def test_a_choice_begins_at_the_first_and_has_no_gaps(count):
    names = [f"{i:03}" for i in range(100)]
    chosen = evenly(names, count)
    assert len(set(chosen)) == len(chosen) == min(count, 100)
    assert chosen[0] == "000"
    assert count == 1 or chosen[-1] == "099"
    steps = np.diff([int(name) for name in chosen])
    assert count == 1 or steps.max() - steps.min() <= 1


COLOURS = {"unusable": sheet.RED, "blurry": sheet.ORANGE, "turned": sheet.BLUE}


def chips(flags):
    canvas = Image.new("RGB", (CELL + 100, 60), "white")
    sheet._draw_flags(sheet.ImageDraw.Draw(canvas), flags, (0, 0))
    return canvas


@pytest.mark.parametrize("flag", COLOURS)
def test_a_flag_has_the_colour_of_its_weight(flag):
    assert chips([flag]).getpixel((3, 8)) == COLOURS[flag]


def test_more_flags_than_fit_are_a_number():
    every = [finding.flag for finding in FINDINGS]
    for count in range(1, len(every) + 1):
        left, top, right, bottom = ImageChops.invert(chips(every[:count])).getbbox()
        assert (left, top) == (0, 0)
        assert right <= CELL + 1
        assert bottom <= 36
    grey = sheet.PALE_INK
    assert grey in chips(every).get_flattened_data()
    assert grey not in chips(every[:3]).get_flattened_data()


@pytest.mark.parametrize(
    "text",
    ["", "short", "many words of a caption " * 20, "x" * 500, "line\nbreak\tand\x07bell", "\udcff"],
)
@pytest.mark.parametrize("lines", [1, 2])
def test_text_fits_its_place(text, lines):
    font = sheet._font(11)
    result = sheet.fitted(text, font, CELL, lines)
    assert 1 <= len(result) <= lines
    assert all(font.getlength(line) <= CELL and line.isprintable() for line in result)
    whole = " ".join(text.split())
    if result[-1].endswith("..."):
        assert font.getlength(whole) > CELL * (lines - 0.5)
    else:
        assert len(" ".join(result)) >= len(whole)
