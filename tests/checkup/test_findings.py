"""Every finding, and its absence, on pictures drawn for it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from hn.checkup.findings import FINDINGS
from hn.checkup.measures import sharpness
from tests.checkup.drawn import checked, drawing, flags, write


def encoded(picture, kind, **settings):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(drawing(1, (96, 80)), "JPEG", exif=exif)


def with_alpha(opaque):
    """The left share of it opaque, the rest clear."""
    picture = drawing(1).convert("RGBA")
    alpha = Image.new("L", picture.size)
    alpha.paste(255, (0, 0, round(96 * opaque), 96))
    picture.putalpha(alpha)
    return picture


def animated(frames):
    pictures = [drawing(seed) for seed in range(1, frames + 1)]
    settings = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    return encoded(pictures[0], "WEBP", lossless=True, **settings)


GREY_16 = Image.fromarray(np.asarray(drawing(1).convert("L")).astype(np.uint16) * 257)
SOFT = drawing(1).filter(ImageFilter.GaussianBlur(4))
CASES = {  # file, finding that it must have, file that must not have it
    "enlarged": ("a.png", drawing(1, (63, 80)), drawing(1, (64, 80))),
    "uniform": ("a.png", Image.new("RGB", (96, 96), "teal"), drawing(1)),
    "blurry": ("a.png", SOFT, drawing(1)),
    "transparent": ("a.png", with_alpha(0.4), with_alpha(0.6)),
    "elongated": ("a.png", drawing(1, (310, 100)), drawing(1, (300, 100))),
    "cropped": ("a.png", drawing(1, (200, 96)), drawing(1, (190, 96))),
    "grey": ("a.png", drawing(1).convert("L"), drawing(1)),
    "animated": ("a.webp", animated(3), animated(1)),
    "16 bits": ("a.png", GREY_16, drawing(1).convert("L")),
    "misnamed": ("a.png", encoded(drawing(1), "JPEG"), encoded(drawing(1), "PNG")),
    "turned": ("a.jpg", turned(6), turned(1)),
}


@pytest.mark.parametrize("flag", CASES)
def test_a_picture_has_a_finding_or_does_not(flag, tmp_path):
    name, having, lacking = CASES[flag]
    key = name.replace(".", "__")
    assert flag in flags(checked(write(tmp_path / "having", **{key: having})))[name]
    assert flag not in flags(checked(write(tmp_path / "lacking", **{key: lacking})))[name]


def test_every_measured_finding_has_a_case():
    measured = {finding.flag for finding in FINDINGS if finding.measure}
    assert measured == {*CASES, "distorted", "padded"}  # which have tests of their own


def test_a_good_picture_has_no_finding(tmp_path):
    report = checked(write(tmp_path / "set", a__png=drawing(1), b__png=drawing(2)))
    assert flags(report) == {"a.png": [], "b.png": []}
    assert report.usable


def test_one_colour_is_not_blurred(tmp_path):
    plain = Image.new("RGB", (96, 96), "teal")
    assert flags(checked(write(tmp_path / "set", a__png=plain)))["a.png"] == ["uniform"]


def test_stretching_distorts_and_cuts_nothing_off(tmp_path):
    folder = write(tmp_path / "set", a__png=drawing(1, (160, 96)), b__png=drawing(2, (120, 96)))
    stretched = checked(folder, resize_mode="stretch")
    assert flags(stretched) == {"a.png": ["distorted"], "b.png": []}
    assert [measures.cropped for _, measures in stretched.measured] == [0, 0]
    cropped = checked(folder, resize_mode="crop")
    assert flags(cropped) == {"a.png": [], "b.png": []}
    assert dict(cropped.measured)["a.png"].cropped == pytest.approx(1 - 96 / 160, abs=0.01)


def test_padding_keeps_all_and_counts_what_is_added(tmp_path):
    folder = write(tmp_path / "set", a__png=drawing(1, (200, 96)), b__png=drawing(2, (190, 96)))
    report = checked(folder, resize_mode="pad")
    assert flags(report) == {"a.png": ["padded"], "b.png": []}
    measures = dict(report.measured)["a.png"]  # 200 x 96 -> 64 x 31
    assert (measures.cropped, measures.padded) == (0, pytest.approx(1 - 31 / 64))
    assert measures.enlargement == pytest.approx(31 / 96)


def test_scale_and_share_cut_off_of_a_frame_that_is_not_square(tmp_path):
    report = checked(write(tmp_path / "set", a__png=drawing(1, (200, 100))), resolution=(128, 96))
    ((_, measures),) = report.measured  # 200 x 100 -> 192 x 96, of which 128 x 96 is seen
    assert measures.enlargement == pytest.approx(0.96)
    assert measures.cropped == pytest.approx(1 / 3)


def test_blur_is_judged_at_the_size_that_is_trained_on(tmp_path):
    """What is soft in a large file can be sharp when it is made small."""
    large = drawing(1).resize((960, 960), Image.Resampling.LANCZOS)
    folder = write(tmp_path / "set", a__png=large)
    assert "blurry" not in flags(checked(folder, resolution=(64,)))["a.png"]
    assert "blurry" in flags(checked(folder, resolution=(960,)))["a.png"]


def test_a_sharp_thing_before_a_soft_ground_is_sharp():
    portrait = Image.linear_gradient("L")
    ImageDraw.Draw(portrait).ellipse((100, 100, 125, 125), fill=200)
    assert sharpness(portrait) > 100 > sharpness(portrait.filter(ImageFilter.GaussianBlur(3)))


def test_an_edge_between_equally_bright_colours_is_sharp(tmp_path):
    picture = Image.new("RGB", (96, 96), (200, 60, 60))
    picture.paste((0, 130, 211), (30, 30, 60, 60))
    assert np.ptp(np.asarray(picture.convert("L")).astype(int)) <= 6
    assert flags(checked(write(tmp_path / "set", a__png=picture)))["a.png"] == []


def test_the_variance_of_the_laplacian_is_the_known_number():
    """One white pixel in the middle of black: the kernel itself, in a part of 3 x 3 pixels."""
    picture = Image.new("L", (14, 14))
    picture.putpixel((7, 7), 1)
    # parts of 12 x 12 are 3 x 3; the pixel lies at a corner of one, with two of its neighbours
    assert sharpness(picture) == pytest.approx(np.var([-4, 1, 1, 0, 0, 0, 0, 0, 0]))


def test_formats_and_modes_are_counted(tmp_path):
    folder = write(
        tmp_path / "set",
        a__jpg=drawing(1).convert("CMYK"),
        b__png=drawing(2).quantize(16),
        c__png=drawing(3),
        d__webp=drawing(4),
        e__png=drawing(5).convert("1"),
        f__bmp=drawing(6),
    )
    report = checked(folder)
    assert report.counted("kind") == {"PNG": 3, "JPEG": 1, "WEBP": 1, "BMP": 1}
    assert report.counted("mode") == {"RGB": 3, "CMYK": 1, "P": 1, "1": 1}


def test_a_phone_s_jpeg_with_a_second_picture_is_a_jpeg(tmp_path):
    both = encoded(drawing(1), "MPO", save_all=True, append_images=[drawing(2)])
    report = checked(write(tmp_path / "set", a__jpg=both))
    assert report.counted("kind") == {"MPO": 1}
    assert dict(report.measured)["a.jpg"].frames == 2
    assert flags(report) == {"a.jpg": []}


def test_colours_of_16_bits_are_known(tmp_path):
    """Pillow opens them as 8 bits without a word."""
    import struct
    import zlib

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    samples = np.asarray(drawing(1)).astype(">u2") * 257
    lines = b"".join(b"\0" + line.tobytes() for line in samples)
    header = struct.pack(">IIBBBBB", 96, 96, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines))
    report = checked(write(tmp_path / "set", a__png=png + chunk(b"IEND", b"")))
    assert flags(report) == {"a.png": ["16 bits"]}


def test_the_worst_comes_first(tmp_path):
    sides = {"a__png": 50, "b__png": 20, "c__png": 90, "d__png": 40}
    folder = write(tmp_path / "set", **{n: drawing(1, (s, s)) for n, s in sides.items()})
    report = checked(folder)
    by_flag = {finding.flag: finding for finding in FINDINGS}
    found = [picture.name for picture in report.flagged(by_flag["enlarged"])]
    assert found == ["b.png", "d.png", "a.png"]


def test_every_picture_is_decoded_once(tmp_path, monkeypatch):
    folder = write(tmp_path / "set", **{f"{i}__png": drawing(i) for i in range(4)})
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(1) or original(*a, **k))
    checked(folder)
    assert len(opened) == 4
