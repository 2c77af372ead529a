"""Rows 28 to 38, and 41: captions, metadata, names."""

import json
import os
from collections.abc import Callable

from hn.config import DataConfig
from hn.data.pictures.images import examples_of, load_examples
from tests.bad_input.row import Row, Scene, assert_stopped, counted, encoded, plain, stops

PNG = encoded(plain())


def caption(content: bytes) -> Callable[[Scene], dict]:
    """A picture `a.png` with this caption."""
    return lambda scene: {"pictures": scene.folder(a__png=PNG, a__txt=content)}


def captions_of(scene: Scene, **files: bytes) -> dict[str, str]:
    """The captions by picture, as training reads them."""
    config = DataConfig(train_data_dir=str(scene.folder(**files)))
    return {example.name: example.caption for example in examples_of(load_examples(config))}


def encodings(scene: Scene) -> None:
    texts = {"latin": "caf\xe9".encode("latin-1"), "sjis": "\u661f".encode("shift-jis")}
    files = {f"{name}__txt": data for name, data in texts.items()}
    folder = scene.folder(latin__png=PNG, sjis__png=PNG, wide__png=PNG, **files)
    (folder / "wide.txt").write_bytes("a star".encode("utf-16"))
    words = ["latin.txt is not UTF-8 text (byte 3)", "iconv -f LATIN1 -t UTF-8 latin.txt"]
    words += ["sjis.txt is not UTF-8", "wide.txt is not UTF-8 text (byte 0)"]
    assert_stopped(scene.run(pictures=folder), 3, words)


def marks(scene: Scene) -> None:
    text = b"\xef\xbb\xbfa star\r\non blue\r"
    assert captions_of(scene, a__png=PNG, a__txt=text)["a.png"] == "a star\non blue\n"
    said = scene.run(**caption(b"a\0b")(scene))
    assert_stopped(said, 3, ["a.txt holds a NUL character (byte 1)", "in UTF-8?"])


def metadata(scene: Scene) -> None:
    words = b"file_name,text\na.png,NA\nb.png,null\n"
    found = captions_of(scene, a__png=PNG, b__png=PNG, metadata__csv=words)
    assert (found["a.png"], found["b.png"]) == ("NA", "null")
    rows = [{"file_name": "a.png", "text": 5}, {"file_name": "b.png", "text": None}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    folder = scene.folder(a__png=PNG, b__png=PNG, metadata__jsonl=lines)
    words = [f"metadata.jsonl line {it}: text must be a text or a list of texts" for it in (1, 2)]
    assert_stopped(scene.run(pictures=folder), 3, words)


def rows(scene: Scene) -> None:
    names = ["gone.png", "a.png", "a.png", "../b.png", "/etc/b.png"]
    lines = "".join(json.dumps({"file_name": name, "text": "x"}) + "\n" for name in names)
    said = scene.run(pictures=scene.folder(a__png=PNG, metadata__jsonl=lines))
    words = [
        "metadata.jsonl line 1: there is no picture 'gone.png'",
        "line 3: 'a.png' has its row in line 2 already",
        "line 4: file_name '../b.png' leaves the folder; give the name alone",
        "line 5: file_name '/etc/b.png' leaves the folder",
    ]
    assert_stopped(said, 3, words)


def names(scene: Scene) -> None:
    folder = scene.folder()
    for name in ("a\nb\x1b[2J", "\u2b50", "-rf", "*?[x]"):
        (folder / f"{name}.png").write_bytes(PNG)
        (folder / f"{name}.txt").write_text("a star")
    (folder / "c\nd\x1b[2J.gif").write_bytes(b"")
    said = scene.run(pictures=folder, dry_run=True)
    assert said.code == 0, said.err
    assert "c\\nd\\x1b[2J.gif" in said.out
    assert "\x1b[2J" not in said.out + said.err
    (folder / os.fsdecode(b"\xff.png")).write_bytes(PNG)
    said = scene.run(pictures=folder, dry_run=True)
    assert_stopped(said, 3, ["'\\udcff.png' is not a name in UTF-8", "rename it"])


ROWS = [
    stops(
        28,
        "two pictures, one caption file",
        3,
        ["a.png and a.jpg share a.txt", "rename one"],
        lambda scene: {"pictures": scene.folder(a__png=PNG, a__jpg=PNG, a__txt="both")},
    ),
    stops(
        29,
        "no caption",
        3,
        ["a.png has no caption a.txt", "set missing_caption to filename, template or empty"],
        lambda scene: {"pictures": scene.folder(a__png=PNG)},
    ),
    counted(29, "the same, taken as empty", "train", "no_caption", ["deep.png"], count=2),
    stops(
        30,
        "a blank caption",
        3,
        ["a.png has a blank caption in a.txt", "Write one, or set missing_caption"],
        caption(b" \n"),
    ),
    counted(30, "the same, taken as empty", "train", "no_caption", ["turned.jpg"], count=2),
    Row(31, "captions that are not UTF-8", encodings),
    Row(32, "marks, line ends, NUL", marks),
    counted(33, "a caption longer than is read", "prompts", "cut", ["L.png"]),
    counted(34, "the name of a special token", "prompts", "remarks", [], count=2),
    stops(
        35,
        "a caption of 10 MB",
        3,
        ["a.txt has 10000000 bytes; at most 65536 are read"],
        caption(b"a" * 10_000_000),
    ),
    counted(36, "a caption without a picture", "train", "unused", ["lost.txt"]),
    Row(37, "words that others take for nothing, other types", metadata),
    Row(38, "rows of no picture, rows twice, ways out of the folder", rows),
    Row(41, "odd names", names),
]
