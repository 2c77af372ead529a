"""Captions from metadata.jsonl and metadata.csv, and what is wrong with them, line by line."""

import csv
import json
import os

import datasets
import pytest
from PIL import Image

from hn.config import DataConfig
from hn.data.pictures.images import examples, load_examples, read_folder
from hn.data.words.metadata import MAX_BYTES, read_metadata
from hn.errors import DataError
from tests import caches


@pytest.fixture
def folder(tmp_path):
    """Three pictures, a.png, b.png and c.png."""
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    return tmp_path


def rows(*pairs) -> str:
    return "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in pairs)


def captions(folder, **settings):
    data = DataConfig(train_data_dir=str(folder), **settings)
    return [(e.name, e.captions) for e in examples(load_examples(data), "reading")]


def refusal(folder, **settings) -> list[str]:
    with pytest.raises(DataError) as caught:
        captions(folder, **settings)
    return str(caught.value).splitlines()


def test_captions_come_from_the_lines_of_jsonl(folder, capsys):
    text = (
        rows(("b.png", "bee"), ("./a.png", ["ay", "an a"])) + "\n" + rows(("c.png", "sea\u2028x"))
    )
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8-sig")
    assert captions(folder) == [
        ("a.png", ("ay", "an a")),
        ("b.png", ("bee",)),
        ("c.png", ("sea\u2028x",)),
    ]
    assert not capsys.readouterr().out


def test_captions_come_from_the_rows_of_csv(folder):
    lines = ["file_name,text", "a.png,NA", 'b.png,"one, ""two""', 'three"', "", "c.png,null"]
    (folder / "metadata.csv").write_bytes("\r\n".join(lines).encode())
    assert captions(folder) == [
        ("a.png", ("NA",)),
        ("b.png", ('one, "two"\nthree',)),
        ("c.png", ("null",)),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_plain_file_is_read_as_datasets_reads_it(folder, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts = {"a.png": 'one, "two"', "b.png": "drei\u00e4", "c.png": "x"}
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text(rows(*texts.items()), encoding="utf-8")
    else:
        with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("file_name", "text"), *texts.items()])
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    assert list(theirs["text"]) == list(texts.values())
    assert captions(folder) == [(name, (text,)) for name, text in texts.items()]


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", "1", "1e5", "true", ""])
def test_a_text_is_not_taken_for_something_else(folder, word):
    (folder / "metadata.jsonl").write_text(rows(("a.png", word), ("b.png", "b"), ("c.png", "c")))
    assert captions(folder, missing_caption="empty")[0] == ("a.png", (word,))


def test_another_column_is_chosen_and_unused_ones_are_named(folder, capsys):
    content = "file_name,text,prompt,width\na.png,x,ay,8\nb.png,x,bee,8\nc.png,x,sea,8\n"
    (folder / "metadata.csv").write_text(content)
    found = captions(folder, caption_column="prompt")
    assert [texts for _, texts in found] == [("ay",), ("bee",), ("sea",)]
    assert capsys.readouterr().out == "columns not used, of metadata.csv: 2 ('text', 'width')\n"


def test_a_picture_without_a_row_or_with_a_blank_one_follows_missing_caption(folder):
    (folder / "metadata.jsonl").write_text(rows(("a.png", "ay"), ("b.png", " ")))
    headline, *lines = refusal(folder)
    assert "train_data_dir" in headline
    assert "b.png has a blank caption in line 2 of metadata.jsonl" in lines[0]
    assert "c.png has no caption c.txt" in lines[1]
    for missing, words in (("filename", ["ay", "b", "c"]), ("empty", ["ay", "", ""])):
        assert [t for _, t in captions(folder, missing_caption=missing)] == [(w,) for w in words]


def test_text_files_and_rows_may_describe_different_pictures_but_not_the_same(folder):
    (folder / "metadata.jsonl").write_text(rows(("a.png", "ay"), ("b.png", "bee")))
    (folder / "c.txt").write_text("sea")
    assert [texts for _, texts in captions(folder)] == [("ay",), ("bee",), ("sea",)]
    (folder / "b.txt").write_text("bee")
    assert refusal(folder)[1:] == [
        "  b.png has captions in b.txt and in line 2 of metadata.jsonl: remove one of the two"
    ]


def test_two_metadata_files_are_refused(folder):
    for name in ("metadata.jsonl", "metadata.csv"):
        (folder / name).write_text("")
    assert "holds metadata.jsonl and metadata.csv: keep one" in refusal(folder)[0]


FAULTY_LINES = {
    '{"file_name": "d.png", "text": "x"}': "there is no picture 'd.png'",
    '{"file_name": "sub/a.png", "text": "x"}': "'sub/a.png', and sub-folders are not read",
    '{"file_name": "a.png", "text": "x"}': "'a.png' has its row in line 1 already",
    '{"file_name": "./a.png", "text": "x"}': "'a.png' has its row in line 1 already",
    '{"file_name": "../c.png", "text": "x"}': "file_name '../c.png' leaves the folder",
    '{"file_name": "sub/../c.png", "text": "x"}': "leaves the folder",
    r'{"file_name": "..\\c.png", "text": "x"}': r"file_name '..\\c.png' leaves the folder",
    '{"file_name": "/c.png", "text": "x"}': "file_name '/c.png' leaves the folder",
    r'{"file_name": "C:\\c.png", "text": "x"}': "leaves the folder",
    '{"file_name": "", "text": "x"}': 'must be the name of a picture; found ""',
    '{"file_name": null, "text": "x"}': "must be the name of a picture; found null",
    '{"file_name": "c.png", "text": null}': "must be a text or a list of texts; found null",
    '{"file_name": "c.png", "text": 7}': "must be a text or a list of texts; found 7",
    '{"file_name": "c.png", "text": {"a": 1}}': 'a list of texts; found {"a": 1}',
    '{"file_name": "c.png", "text": ["x", 1]}': 'found ["x", 1]',
    '{"file_name": "c.png", "text": ["x", " "]}': "text has a blank caption among others",
    '{"file_name": "c.png", "text": "x\\u0000"}': "a caption holds a NUL character",
    '{"file_name": "c.png", "text": "\\ud800"}': "surrogates not allowed",
    '{"file_name": "c.png", "text": "%s"}' % ("x" * 65_537): "a caption has 65537 bytes",
    '{"file_name": "c.png", "caption": "x"}': "it has no 'text', but ['file_name', 'caption']; "
    "caption_column chooses another",
    '{"text": "x"}': "it has no 'file_name', but ['text']",
    '{"file_name": "c.png", "text": "x", "text": "y"}': "a name stands twice in",
    '["c.png", "x"]': 'it must be a JSON object; found ["c.png", "x"]',
    '{"file_name": "c.png"': "valid JSON: Expecting ',' delimiter at character 21",
    "[" * 100_000: "it is not valid JSON: ",
}


@pytest.mark.parametrize("line", FAULTY_LINES, ids=lambda line: line[:45])
def test_a_line_that_cannot_be_used_is_named_with_its_number(folder, line):
    good = rows(("a.png", "x")), rows(("b.png", "x"))
    (folder / "metadata.jsonl").write_text(f"{good[0]}\n{line}\n{good[1]}")
    (fault,) = [fault for fault in refusal(folder) if "metadata.jsonl line" in fault]
    assert fault.startswith("  metadata.jsonl line 3: ")
    assert FAULTY_LINES[line] in fault
    assert len(fault) < 200


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("file_name,text\na.png,x\nb.png\n", "line 3: it has 1 fields; the columns are"),
        ('file_name,text\na.png,"x\ny"\nb.png,x,y\n', "line 4: it has 3 fields"),
        ('file_name,text\na.png,"x" y\n', "line 2: it is not valid CSV: "),
        ('file_name,text\na.png,"x\nb.png,y\n', "line 2: it is not valid CSV: "),
        ("file_name,text,text\na.png,x,y\n", "line 1: a column stands twice"),
        ("file,text\na.png,x\n", "line 2: it has no 'file_name', but ['file', 'text']"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_line(folder, content, fault):
    (folder / "metadata.csv").write_text(content)
    assert f"  metadata.csv {fault}" in "\n".join(refusal(folder, missing_caption="empty"))


def test_a_metadata_file_that_is_no_text_or_too_long_is_refused(folder):
    file = folder / "metadata.jsonl"
    file.write_bytes(rows(("a.png", "x")).encode("utf-16"))
    with pytest.raises(DataError, match=r"metadata\.jsonl is not UTF-8 text \(byte 0\)"):
        read_metadata(folder, "text")
    os.truncate(file, MAX_BYTES + 1)  # without taking the room
    with pytest.raises(DataError, match=r"metadata\.jsonl has 268435457 bytes; at most 268435456"):
        read_metadata(folder, "text")


def test_what_is_no_file_is_not_waited_for(folder):
    os.mkfifo(folder / "a.txt")
    (folder / "b.txt").symlink_to("nowhere")
    lines = refusal(folder, missing_caption="filename")
    assert "a.txt: it is not a regular file" in lines[1]
    assert "b.txt: No such file" in lines[2]


def test_two_pictures_of_one_stem_need_no_text_file(folder):
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    pairs = [(name, name) for name in ("a.jpg", "a.png", "b.png", "c.png")]
    (folder / "metadata.jsonl").write_text(rows(*pairs))
    assert captions(folder) == [(name, (text,)) for name, text in pairs]
    (folder / "metadata.jsonl").write_text(rows(*pairs[2:]))
    assert "a.png and a.jpg share a.txt" in "".join(refusal(folder, missing_caption="filename"))


def test_lines_are_captions_of_their_own_if_that_is_set(folder):
    (folder / "a.txt").write_bytes(b"one\r\n\r\n  two \n\n")
    (folder / "b.txt").write_text("")
    (folder / "metadata.jsonl").write_text(rows(("c.png", ["three\n four", "five"])))
    assert captions(folder, missing_caption="empty", caption_lines=True) == [
        ("a.png", ("one", "two")),
        ("b.png", ("",)),
        ("c.png", ("three", "four", "five")),
    ]
    assert captions(folder, missing_caption="empty") == [
        ("a.png", ("one\n\n  two \n\n",)),
        ("b.png", ("",)),
        ("c.png", ("three\n four", "five")),
    ]


def test_the_digest_knows_every_caption(folder):
    def digest(*texts):
        if texts:
            (folder / "metadata.jsonl").write_text(rows(("a.png", list(texts)), ("b.png", "b")))
        dataset = read_folder(folder, "empty", setting="x")
        return caches.digest(dataset)

    digests = [digest("x", "y"), digest("x", "z"), digest("y", "x"), digest("x"), digest("x y")]
    assert len(set(digests)) == len(digests)
    assert digest("x", "y") == digests[0]
    alone = digest("x")
    (folder / "metadata.jsonl").unlink()
    (folder / "a.txt").write_text("x")
    (folder / "b.txt").write_text("b")
    assert digest() == alone
