"""From any file that ends like a picture to a training tensor, or to a reason."""

import io
import os
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image

from hn.data.pictures.checks import check_pictures
from hn.data.pictures.decoding import Example, open_picture
from hn.data.pictures.images import examples, read_folder
from hn.errors import DataError
from tests import caches

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def encoded(picture: Image.Image, kind="PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def opened(content: bytes) -> Image.Image:
    return open_picture(Example("it.png", {"bytes": content, "path": None}, ""))


def halves(left=RED, right=BLUE, size=(8, 4)) -> Image.Image:
    picture = Image.new("RGB", size, right)
    picture.paste(left, (0, 0, size[0] // 2, size[1]))
    return picture


def write_folder(folder, **files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


PNG = encoded(halves())


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right
    picture = opened(encoded(halves(size=(32, 16)), "JPEG", exif=exif, quality=95))
    assert picture.size == (16, 32)
    top, bottom = picture.getpixel((8, 4)), picture.getpixel((8, 28))
    assert (top[0] > 200, bottom[2] > 200) == (True, True)


def test_transparency_is_laid_on_white():
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (255, 0, 0, 0))
    result = opened(encoded(picture))
    assert [result.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


def test_half_transparency_is_half_white():
    assert opened(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))).getpixel((0, 0)) == (
        255,
        127,
        127,
    )


def test_the_transparent_colour_of_a_palette_becomes_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((1, 0), 1)
    result = opened(encoded(picture, transparency=1))
    assert [result.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


def test_grey_of_16_bits_keeps_its_shades():
    shades = np.array([[0, 128 << 8, 65535]], dtype=np.uint16)
    result = opened(encoded(Image.fromarray(shades)))
    assert [result.getpixel((x, 0)) for x in range(3)] == [(v, v, v) for v in (0, 128, 255)]


def test_cmyk_becomes_rgb():
    result = opened(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert result.mode == "RGB"
    red, green, blue = result.getpixel((4, 4))
    assert (red > 200, green < 60, blue < 60) == (True, True, True)


MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "WEBP": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "JPEG": ["1", "L", "RGB"],  # what these two can hold
    "BMP": ["1", "L", "RGB"],
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind in MODES for mode in MODES[kind]])
def test_every_mode_of_every_format_becomes_rgb(kind, mode):
    picture = halves(size=(16, 16)).convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(255)
    result = opened(encoded(picture, kind))
    assert (result.mode, result.size) == ("RGB", (16, 16))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header says that it is so large."""
    png = bytearray(encoded(Image.new("L", (8, 8))))
    png[16:24] = struct.pack(">II", width, height)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


NOT_PICTURES = {
    "cut-short-jpeg": (encoded(NOISE, "JPEG")[:2000], "truncated"),
    "cut-short-png": (encoded(NOISE)[:2000], "truncated"),
    "empty": (b"", "cannot be read"),
    "html": (b"<!DOCTYPE html><html></html>", "cannot identify"),
    "gif": (encoded(halves(), "GIF"), "cannot identify"),
    "transparent": (encoded(Image.new("RGBA", (4, 4))), "fully transparent"),
    "too-many-pixels": (claiming(10_001, 10_000), "10001 x 10000 pixels are too many"),
    "far-too-many-pixels": (claiming(50_000, 50_000), "50000 x 50000 pixels are too many"),
}


@pytest.mark.parametrize("fault", NOT_PICTURES)
def test_what_is_no_picture_is_named_with_the_reason(fault, tmp_path):
    content, reason = NOT_PICTURES[fault]
    folder = write_folder(tmp_path / "set", bad__png=content, bad__txt=b"", good__png=PNG)
    dataset = read_folder(folder, "empty", setting="train_data_dir")
    with pytest.raises(DataError) as caught:
        check_pictures(dataset)
    headline, *lines = str(caught.value).splitlines()
    assert headline.startswith("1 of 2 pictures cannot be used; mend or remove them")
    assert lines[0].startswith("  bad.png: ")
    with pytest.raises(DataError, match=reason):
        open_picture(next(iter(examples(dataset, "reading"))))


def test_the_reason_is_the_same_every_time():
    """Pillow's own words hold the address of an object."""
    with pytest.raises(DataError) as caught:
        opened(NOT_PICTURES["html"][0])
    assert str(caught.value) == (
        "it.png: cannot be read as PNG, JPEG, WEBP, BMP: cannot identify its content, which looks "
        "like a web page"
    )


def test_a_picture_of_a_hundred_million_pixels_is_not_too_large():
    with pytest.raises(DataError, match=r"truncated|broken|not enough"):  # that is all it lacks
        opened(claiming(10_000, 10_000))


def test_a_folder_named_like_a_picture_is_refused(tmp_path):
    folder = write_folder(tmp_path / "set", good__png=PNG)
    (folder / "x.png").mkdir()
    with pytest.raises(DataError, match=r"x\.png: .*not a regular file"):
        check_pictures(read_folder(folder, "empty", setting="train_data_dir"))


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    folder = write_folder(
        tmp_path / "set", b__PNG=PNG, a__jpg=encoded(halves(), "JPEG"), b__txt=b"bee", a__txt=b"ay"
    )
    dataset = read_folder(folder, "stop", setting="train_data_dir")
    found = [(example.name, example.caption) for example in examples(dataset, "reading")]
    assert found == [("a.jpg", "ay"), ("b.PNG", "bee")]


def test_what_is_wrong_with_captions_is_listed_at_once(tmp_path):
    folder = write_folder(
        tmp_path / "set",
        a__png=PNG,
        b__png=PNG,
        b__txt="é".encode("latin-1"),
        c__png=PNG,
        c__jpg=PNG,
        c__txt=b"sea",
    )
    with pytest.raises(DataError) as caught:
        read_folder(folder, "stop", setting="train_data_dir")
    headline, *lines = str(caught.value).splitlines()
    assert "train_data_dir" in headline
    assert [line.split(".")[0].strip() for line in lines] == ["a", "b", "c"]
    assert "no caption a.txt" in lines[0]
    assert "not UTF-8" in lines[1]
    assert "c.png and c.jpg share c.txt" in lines[2]


def test_a_name_that_is_not_utf_8_is_a_fault_that_can_be_printed(tmp_path):
    folder = write_folder(tmp_path / "set", a__png=PNG)
    (folder / "a.png").rename(folder / os.fsdecode(b"\xff.png"))
    for missing in ("stop", "empty"):
        with pytest.raises(DataError, match=r"'\\udcff\.png' is not a name in UTF-8") as caught:
            read_folder(folder, missing, setting="train_data_dir")
        assert str(caught.value).encode()


def test_a_long_list_of_faults_is_cut(tmp_path):
    folder = write_folder(tmp_path / "set", **{f"{i:02}__png": PNG for i in range(25)})
    with pytest.raises(DataError, match=r"\.\.\. and 5 more$"):
        read_folder(folder, "stop", setting="train_data_dir")


def test_what_is_not_used_is_said(tmp_path, capsys):
    folder = write_folder(tmp_path / "set", a__png=PNG, a__txt=b"one", b__txt=b"", c__gif=b"")
    (folder / "more").mkdir()
    read_folder(folder, "stop", setting="train_data_dir")
    said = capsys.readouterr().out
    assert said.startswith("not used, of ")
    assert said.rstrip().endswith("3 ('b.txt', 'c.gif', 'more/')")


def test_a_folder_without_pictures_and_no_folder_are_refused(tmp_path):
    folder = write_folder(tmp_path / "set", a__txt=b"", b__gif=b"")
    with pytest.raises(DataError, match=r"holds no picture: 2 entries, none ends with \.png"):
        read_folder(folder, "stop", setting="train_data_dir")
    with pytest.raises(DataError, match="is not a folder"):
        read_folder(folder / "a.txt", "error", setting="train_data_dir")


def digest(folder):
    dataset = read_folder(folder, "empty", setting="x")
    return caches.digest(dataset)


def test_the_digest_knows_names_captions_and_bytes(tmp_path):
    other = encoded(halves(BLUE, RED))
    variants = [
        {"a__png": PNG, "a__txt": b"one"},
        {"b__png": PNG, "b__txt": b"one"},
        {"a__png": PNG, "a__txt": b"two"},
        {"a__png": other, "a__txt": b"one"},
    ]
    digests = [digest(write_folder(tmp_path / str(i), **v)) for i, v in enumerate(variants)]
    assert len(set(digests)) == len(variants)
    assert digest(write_folder(tmp_path / "again", **variants[0])) == digests[0]
