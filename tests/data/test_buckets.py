"""The sizes that pictures of all proportions are trained at, and the table of them."""

import csv
import json
import math
import time

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hn.config import DataConfig
from hn.data.pictures.bucket_table import SHOWN, bucket_table, counted, write_pictures
from hn.data.pictures.buckets import bucket_sizes, step_of
from hn.data.pictures.framing import Framing
from hn.errors import ModelError, OptionError

SIDES = st.one_of(st.integers(1, 6000), st.integers(1, 100_000))
PICTURES = st.tuples(SIDES, SIDES)
STEPS = st.sampled_from([4, 8, 64])


def bucketed(resolution=(512,), step=64, **settings) -> Framing:
    return Framing.of(
        DataConfig(resolution=resolution, resize_mode="bucket", **settings), step=step
    )


@st.composite
def framings(draw, **settings) -> Framing:
    step = draw(STEPS)
    sides = draw(st.lists(st.integers(step, 12 * step), min_size=1, max_size=2))
    longest = draw(st.sampled_from([1.0, 1.1, 2.0, 4.0, 7.5]))
    return bucketed(tuple(sides), step, max_aspect_ratio=longest, **settings)


ANY = st.one_of(framings(), framings(no_upscale=True), framings(native_size=True))


def proportions(size):
    return max(size) / min(size)


def test_the_buckets_of_512():
    sizes = bucket_sizes(512 * 512, 64, 4.0)
    wide = [(576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256)]
    wide += [(1024, 256)]
    assert sizes == (*((h, w) for w, h in reversed(wide)), (512, 512), *wide)


@given(framings())
def test_buckets_are_the_same_turned_and_none_could_be_wider(framing):
    area, step = math.prod(framing.size), framing.step
    sizes = bucket_sizes(area, step, framing.max_aspect_ratio)
    assert {(height, width) for width, height in sizes} == set(sizes)
    ratios = [width / height for width, height in sizes]
    assert ratios == sorted(set(ratios))
    assert max(ratios) <= framing.max_aspect_ratio
    for width, height in sizes:
        assert width * height <= area
        assert width % step == height % step == 0
        grown = [(width + step) * height, width * (height + step)]
        assert width == height or min(grown) > area or max(grown) > area


@given(ANY, PICTURES)
def test_a_size_keeps_step_area_and_longest_proportions(framing, picture):
    size = framing.size_for(picture)
    assert all(side >= framing.step and side % framing.step == 0 for side in size)
    assert proportions(size) <= framing.max_aspect_ratio * (1 + 1e-9)
    assert framing.native_size or math.prod(size) <= math.prod(framing.size)


@given(ANY, PICTURES)
def test_a_picture_of_a_size_it_is_trained_at_stays_as_it_is(framing, picture):
    size = framing.size_for(picture)
    seen = framing.frame(size)
    assert (seen.size, seen.resized, seen.corner) == (size, size, (0, 0))


@given(ANY, PICTURES, st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_frame_lies_inside_the_resized_picture(framing, picture, place):
    seen = framing.frame(picture, place)
    assert seen.visible == seen.box
    assert seen.size == framing.size_for(picture)
    assert all(corner >= 0 for corner in seen.corner)


@given(ANY, PICTURES)
def test_a_picture_turned_is_trained_at_the_size_turned(framing, picture):
    assert framing.size_for(picture[::-1]) == framing.size_for(picture)[::-1]


@given(framings(), PICTURES)
def test_no_bucket_has_nearer_proportions(framing, picture):
    sizes = bucket_sizes(math.prod(framing.size), framing.step, framing.max_aspect_ratio)
    wanted = math.log(picture[0] / picture[1])
    errors = {size: abs(math.log(size[0] / size[1]) - wanted) for size in sizes}
    assert errors[framing.size_for(picture)] <= min(errors.values()) + 1e-9


@given(framings(), st.floats(1, 7.5), st.booleans())
def test_proportions_are_met_up_to_one_step_of_the_shorter_side(framing, ratio, upright):
    """A bucket of n steps along its shorter side is off by less than a factor of 1 + 1 / n."""
    picture = (10_000, round(10_000 / ratio))
    shortest = math.isqrt(int(math.prod(framing.size) / framing.max_aspect_ratio)) // framing.step
    assume(proportions(picture) <= framing.max_aspect_ratio and shortest > 1)
    size = framing.size_for(picture[::-1] if upright else picture)
    factor = proportions(size) / proportions(picture)
    assert max(factor, 1 / factor) <= 1 + 1 / shortest


@given(framings(no_upscale=True), PICTURES)
def test_nothing_is_enlarged_that_fills_one_step(framing, picture):
    seen = framing.frame(picture)
    if min(picture) >= framing.step:
        assert seen.resized[0] <= picture[0]
        assert seen.resized[1] <= picture[1]
    else:  # no more than it takes
        assert min(seen.resized) == min(seen.size) == framing.step


@given(framings(no_upscale=True), PICTURES)
def test_what_is_as_large_as_its_bucket_is_put_into_it(framing, picture):
    bucket = bucketed(framing.size, framing.step, max_aspect_ratio=framing.max_aspect_ratio)
    size = bucket.size_for(picture)
    if all(own >= side for own, side in zip(picture, size, strict=True)):
        assert framing.frame(picture) == bucket.frame(picture)


@given(framings(native_size=True), PICTURES)
def test_a_native_picture_keeps_its_pixels(framing, picture):
    seen, step = framing.frame(picture), framing.step
    if min(picture) < step:
        assert min(seen.resized) == step
        return
    assert seen.resized == picture
    rounded = [side // step * step for side in picture]
    assert min(seen.size) == min(rounded)
    assert max(seen.size) == max(rounded) or proportions(rounded) > framing.max_aspect_ratio


@pytest.mark.parametrize(
    ("picture", "settings", "size", "resized"),
    [
        ((1500, 1000), {}, (640, 384), (640, 427)),  # nearer to 5:3 than to 9:7
        ((4000, 1), {}, (1024, 256), (1_024_000, 256)),
        ((300, 200), {}, (640, 384), (640, 427)),
        ((300, 200), {"no_upscale": True}, (256, 192), (300, 200)),
        ((30, 200), {"no_upscale": True}, (64, 256), (64, 427)),
        ((1023, 260), {"no_upscale": True}, (960, 256), (1016, 258)),  # of too many pixels
        ((1500, 250), {"no_upscale": True}, (768, 192), (1500, 250)),  # 4 to 1
        ((1500, 1000), {"native_size": True}, (1472, 960), (1500, 1000)),
        ((1500, 1000), {"bucket_step": 8}, (624, 416), (624, 416)),
        ((1500, 1000), {"max_aspect_ratio": 1.2}, (512, 512), (768, 512)),
    ],
)
def test_sizes_worked_out_by_hand(picture, settings, size, resized):
    seen = bucketed(**settings).frame(picture)
    assert (seen.size, seen.resized) == (size, resized)


@pytest.mark.parametrize("turned", [1, -1])
def test_just_between_two_buckets_the_larger_is_taken(turned):
    """6 to 1 is the geometric mean of 8 x 2 and 9 x 1."""
    framing = bucketed((16,), step=4, max_aspect_ratio=100.0)
    near = [(5999, 1000), (6000, 1000), (6001, 1000)]
    sizes = [framing.size_for(picture[::turned])[::turned] for picture in near]
    assert sizes == [(32, 8), (32, 8), (36, 4)]


def test_a_resolution_without_room_for_a_step_is_refused():
    with pytest.raises(OptionError, match=r"resolution 32 x 32 holds no bucket of 64 x 64"):
        bucketed((32,))
    assert bucketed((32,), native_size=True).size_for((200, 100)) == (192, 64)


def test_the_step_is_what_the_model_halves(model, tmp_path):
    assert step_of(str(model)) == 4
    assert step_of(str(tmp_path)) == 64
    assert step_of("nobody/has-this-model") == 64
    assert step_of("no hub id at all") == 64


def test_a_configuration_that_cannot_be_read_is_named(tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"block_out_channels": [8, 8]}))
    assert step_of(str(tmp_path)) == 4
    (tmp_path / "vae/config.json").write_text("{}")
    with pytest.raises(ModelError, match="lacks block_out_channels"):
        step_of(str(tmp_path))
    (tmp_path / "vae/config.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        step_of(str(tmp_path))


NAMES = ["a", "b", "wide", "small", "sliver"]
SIZES = [(900, 900), (512, 512), (1600, 800), (100, 100), (4000, 10)]


def test_the_table_counts_marks_and_names():
    lines = bucket_table(NAMES, SIZES, bucketed(), batch_size=2).splitlines()
    assert lines[0] == "sizes: 3, of 5 pictures"
    assert [" ".join(line.split()) for line in lines[1:4]] == [
        "512 x 512 3",
        "704 x 320 1 repeats pictures within a batch of 2",
        "1024 x 256 1 repeats pictures within a batch of 2",
    ]
    worst = 1 - 1024 / (4000 * 256 / 10)
    mean = (worst + 1 - 320 / 352) / 5
    assert lines[4] == (
        f"cut off: {mean:.1%} on average, {worst:.1%} at most ('sliver', 4000 x 10)"
    )
    assert lines[5] == (
        "enlarged, since smaller than the size they are trained at: 2 ('small', 'sliver')"
    )
    assert len(lines) == 6


def test_with_no_upscale_only_what_is_too_small_for_a_step_is_enlarged():
    text = bucket_table(NAMES, SIZES, bucketed(no_upscale=True), batch_size=1)
    assert text.endswith("enlarged, since smaller than one step of 64 pixels: 1 ('sliver')")
    assert "repeats" not in text


def test_the_table_of_padding():
    text = bucket_table(NAMES, SIZES, Framing(size=(512, 512), resize_mode="pad"), batch_size=9)
    assert "  512 x 512         5  repeats pictures within a batch of 9\n" in text
    assert "cut off" not in text
    assert "padded: 30.0% on average, 99.8% at most ('sliver', 4000 x 10)" in text
    assert text.endswith(" 1 ('small')")


def test_many_sizes_are_summed_up():
    sizes = [(64 * number, 64) for number in range(1, SHOWN + 11)] * 2 + [(64, 64)]
    framing = bucketed(native_size=True, max_aspect_ratio=1e3)
    lines = bucket_table([""] * len(sizes), sizes, framing, batch_size=3).splitlines()
    assert lines[1].split() == ["64", "x", "64", "3"]
    assert lines[SHOWN + 1] == (
        "  and 10 more, of 20 pictures; 49 of all sizes repeat pictures within a batch of 3"
    )


def test_no_pictures_are_no_sizes():
    assert bucket_table([], [], bucketed(), batch_size=1) == "sizes: 0, of 0 pictures"


def test_the_file_has_a_row_for_each_picture(tmp_path):
    names = ['a, "b".png', "\udcff.png", "é.png"]
    path = tmp_path / "new/pictures.csv"
    write_pictures(path, names, [(1500, 1000), (512, 512), (64, 64)], bucketed())
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ['a, "b".png', "\\udcff.png", "é.png"]
    assert [row["bucket"] for row in rows] == ["640x384", "512x512", "512x512"]
    assert (rows[0]["width"], rows[0]["height"]) == ("1500", "1000")
    assert float(rows[0]["scale"]) == pytest.approx(427 / 1000)
    assert float(rows[0]["cropped"]) == pytest.approx(1 - 384 / 427, abs=1e-6)
    assert [float(row["scale"]) for row in rows[1:]] == [1, 8]
    assert [float(row["cropped"]) for row in rows[1:]] == [0, 0]


def test_a_million_pictures_of_all_sizes_take_seconds(tmp_path):
    """Less than two on an idle core; five are allowed to a busy one."""
    sizes = np.random.default_rng(0).integers(100, 6000, (1_000_000, 2))
    names = [f"{number}.jpg" for number in range(len(sizes))]
    framing = bucketed(no_upscale=True)
    began = time.process_time()
    text = bucket_table(names, sizes, framing, batch_size=4)
    write_pictures(tmp_path / "pictures.csv", names, sizes, framing)
    assert time.process_time() - began < 5
    assert "of 1000000 pictures" in text
    fit = framing.fit(sizes)
    assert sum(count for _, count in counted(fit)) == len(sizes)
    for number in range(0, len(sizes), 100_000):  # one at a time gives the same
        seen = framing.frame(tuple(sizes[number].tolist()))
        assert seen.size == tuple(fit.sizes[number])
        assert seen.resized == tuple(fit.resized[number])
