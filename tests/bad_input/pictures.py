"""Rows 12 to 27, 39 and 40: picture files."""

import os
import socket
import struct
import zlib
from pathlib import Path

from PIL import Image

from tests.bad_input.row import Row, Scene, assert_stopped, counted, encoded, plain, stops

NOISE = Image.effect_noise((64, 64), 90).convert("RGB")
PNG, JPEG = encoded(NOISE), encoded(NOISE, "JPEG")
DROP = "mend or remove them, or set on_bad_image to drop"
FOREIGN = {
    "a.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
    "b.png": (b"SIMPLE  =                    T", "a FITS file"),
    "c.png": (b"8BPS\0\1" + bytes(40), "a Photoshop file"),
    "d.png": (encoded(plain(), "TIFF"), "a TIFF"),
    "e.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    "f.png": (b"%PDF-1.7\n", "a PDF"),
}


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header says that it is so large."""
    png = bytearray(encoded(Image.new("L", (8, 8))))
    png[16:24] = struct.pack(">II", width, height)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


def with_text_bomb() -> bytes:
    """A PNG with a text of 80 MB in few bytes."""
    body = b"zTXt" + b"Comment\0\0" + zlib.compress(b"a" * 80_000_000)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    png = encoded(plain())
    return png[:33] + chunk + png[33:]


def flipped(data: bytes, place: int) -> bytes:
    """The data with all bits of one byte turned over."""
    return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


def refused(number: int, title: str, files: dict[str, bytes], words: list[str]) -> Row:
    """A row of pictures that cannot be used; all are named."""
    count = f"{len(files)} of {len(files) + 1} pictures cannot be used"

    def given(scene: Scene) -> dict:
        folder = scene.folder(**{name.replace(".", "__"): data for name, data in files.items()})
        for name in files:
            (folder / name).with_suffix(".txt").write_text("a caption")
        return {"pictures": folder}

    return stops(number, title, 3, [count, DROP, *files, *words], given)


def not_files(scene: Scene) -> None:
    folder = scene.folder(**{f"{name}__txt": "words" for name in "abcd"})
    (folder / "a.png").symlink_to("a.png")
    os.mkfifo(folder / "b.png")
    (folder / "c.png").mkdir()
    with socket.socket(socket.AF_UNIX) as pipe:
        here = Path.cwd()
        os.chdir(folder)  # the name of a socket is short
        try:
            pipe.bind("d.png")
        finally:
            os.chdir(here)
        said = scene.run(pictures=folder)
    words = ["4 of 5 pictures", "it is not a regular file", "a.png", "b.png", "c.png", "d.png"]
    assert_stopped(said, 3, [*words, DROP])


def dangling(scene: Scene) -> dict:
    folder = scene.folder(gone__txt="words")
    (folder / "gone.png").symlink_to(scene.path / "nowhere")
    return {"pictures": folder}


HALVES = {
    f"{kind}{part}.{kind}": data[: len(data) * part // 100]
    for kind, data in (("png", PNG), ("jpg", JPEG))
    for part in (50, 99)
}
ROWS = [
    refused(12, "a picture of 0 bytes", {"empty.png": b""}, ["looks like an empty file"]),
    counted(12, "the same, left out", "train", "dropped", ["broken.png"]),
    refused(13, "truncated pictures", HALVES, ["truncated"]),
    refused(14, "a PNG with a wrong checksum", {"bad.png": flipped(PNG, 29)}, ["cannot identify"]),
    refused(14, "a PNG with a flipped bit", {"bit.png": flipped(PNG, len(PNG) // 2)}, []),
    refused(
        15,
        "a web page and a text named as pictures",
        {"page.png": b"<!DOCTYPE html><html>404", "text.jpg": b"not found\n"},
        ["looks like a web page", "looks like text"],
    ),
    counted(16, "a JPEG named .png", "train", "misnamed", ["misnamed.png"]),
    refused(
        17,
        "formats that are not read",
        {name: data for name, (data, _) in FOREIGN.items()},
        ["cannot be read as PNG, JPEG, WEBP, BMP", *(words for _, words in FOREIGN.values())],
    ),
    *(
        counted(18, f"mode {mode}", "train", f"mode_{mode}", [f"{mode}."])
        for mode in ("CMYK", "P", "1", "L")
    ),
    counted(19, "16 bits of grey", "train", "deep", ["deep.png"]),
    refused(
        20,
        "floating point",
        {"float.png": encoded(Image.new("F", (20, 16)), "TIFF")},
        ["looks like a TIFF"],
    ),
    refused(
        21,
        "all transparent",
        {"clear.png": encoded(Image.new("RGBA", (20, 16)))},
        ["fully transparent"],
    ),
    counted(22, "an animation", "train", "animated", ["animated.webp"]),
    refused(22, "a GIF", {"it.png": encoded(plain(), "GIF")}, ["looks like a GIF"]),
    counted(23, "turned by its EXIF data", "train", "turned", ["turned.jpg"]),
    counted(23, "EXIF data that say nothing", "train", "odd_exif", ["odd.jpg"]),
    refused(
        24,
        "too small, too long",
        {"dot.png": encoded(plain(size=(1, 1))), "line.png": encoded(plain(size=(4000, 1)))},
        ["1 x 1 pixels are too few; min_side is 8", "4000 x 1 pixels are too few"],
    ),
    refused(
        24,
        "longer than 100 to 1",
        {"strip.png": encoded(plain(size=(1000, 9)))},
        ["1000 x 9 pixels are longer than 100 to 1", "cut it"],
    ),
    refused(
        25,
        "more pixels than are read",
        {"huge.png": claiming(50_000, 50_000), "large.png": claiming(10_001, 10_000)},
        ["50000 x 50000 pixels are too many", "10001 x 10000 pixels are too many"],
    ),
    refused(26, "a text of 80 MB", {"bomb.png": with_text_bomb()}, ["Decompressed data too large"]),
    counted(27, "the pixels of another", "train", "same_pixels", ["twin.bmp"]),
    stops(39, "a link to nowhere", 3, ["gone.png", "not a regular file", DROP], dangling),
    Row(40, "no files at all", not_files),
]
