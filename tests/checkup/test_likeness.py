"""Pictures that are there twice, to the pixel or almost."""

import io

import pytest
from PIL import Image, ImageEnhance, ImageOps

from hn.checkup import likeness
from hn.checkup.likeness import dhash, fingerprint
from tests.checkup.drawn import checked, drawing, flags, write


def resaved(picture, quality, scale):
    small = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_equal_pixels_are_found_in_other_files(tmp_path):
    buffer = io.BytesIO()
    drawing(1).save(buffer, "PNG", compress_level=0)
    folder = write(
        tmp_path / "set",
        a__png=drawing(1),
        b__png=drawing(2),
        c__png=buffer.getvalue(),
        d__bmp=drawing(1),
    )
    assert (folder / "a.png").read_bytes() != (folder / "c.png").read_bytes()
    report = checked(folder)
    assert (report.same, report.alike) == ([["a.png", "c.png", "d.bmp"]], [])
    assert flags(report)["b.png"] == []
    assert flags(report)["d.bmp"] == ["same pixels"]


def test_one_pixel_makes_them_alike_and_not_the_same(tmp_path):
    other = drawing(1)
    other.putpixel((0, 0), (1, 2, 3))
    report = checked(write(tmp_path / "set", a__png=drawing(1), b__png=other))
    assert (report.same, report.alike) == ([], [["a.png", "b.png"]])


def test_the_same_bytes_in_another_shape_are_not_the_same():
    shapes = [Image.new("RGB", size, "red") for size in ((4, 9), (9, 4))]
    prints = {str(i): fingerprint(shape) for i, shape in enumerate(shapes)}
    assert likeness.same(prints) == []


@pytest.mark.parametrize(("quality", "scale"), [(40, 1), (90, 0.5), (60, 0.4), (95, 1.7)])
def test_what_was_saved_again_is_found(quality, scale, tmp_path):
    picture = drawing(1, (300, 200))
    folder = write(
        tmp_path / "set",
        a__png=picture,
        b__jpg=resaved(picture, quality, scale),
        c__png=drawing(2, (300, 200)),
    )
    assert checked(folder).alike == [["a.png", "b.jpg"]]


def test_a_little_brighter_is_alike_and_mirrored_is_not(tmp_path):
    picture = drawing(1)
    brighter = ImageEnhance.Brightness(picture).enhance(1.07)
    folder = write(
        tmp_path / "set", a__png=picture, b__png=brighter, c__png=ImageOps.mirror(picture)
    )
    assert checked(folder).alike == [["a.png", "b.png"]]


def test_different_drawings_are_not_alike(tmp_path):
    folder = write(tmp_path / "set", **{f"{i:02}__png": drawing(i) for i in range(40)})
    report = checked(folder)
    assert (report.same, report.alike) == ([], [])


def test_one_shape_in_two_colours_is_not_alike(tmp_path):
    """Their hashes agree in all bits: what is drawn often differs in colour only."""
    pictures = [Image.new("RGB", (96, 96), colour) for colour in ("navy", "maroon")]
    for picture in pictures:
        picture.paste("white", (24, 36, 60, 72))
    assert (dhash(pictures[0]) == dhash(pictures[1])).all()
    assert checked(write(tmp_path / "set", a__png=pictures[0], b__png=pictures[1])).alike == []


def test_empty_pictures_resemble_nothing(tmp_path):
    pictures = {f"{i}__png": Image.new("RGB", (96, 96), (200, 200, 200 + i)) for i in range(3)}
    assert checked(write(tmp_path / "set", **pictures)).alike == []


def test_groups_are_joined_through_a_third(tmp_path):
    """a is like b and b like c, whether or not a is like c."""
    steps = [drawing(1).point(lambda level, by=by: min(255, level + by)) for by in (0, 10, 20)]
    folder = write(tmp_path / "set", **{f"{i}__png": step for i, step in enumerate(steps)})
    prints = [fingerprint(step) for step in steps]
    assert abs(prints[0].colours - prints[2].colours).mean() > likeness.LEVELS
    assert checked(folder).alike == [["0.png", "1.png", "2.png"]]


def test_a_bit_of_dhash_says_whether_it_gets_brighter_to_the_right():
    rising = Image.linear_gradient("L").rotate(90).convert("RGB")
    levels = [rising.getpixel((x, 9))[0] for x in (0, 255)]
    assert levels[0] < levels[1]
    assert dhash(rising).tolist() == [255] * 8
    assert dhash(ImageOps.mirror(rising)).tolist() == [0] * 8
