"""What is said of the captions of a set."""

import pytest

from hn import demo
from hn.errors import ModelError
from tests.checkup.drawn import checked, drawing, flags


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    captions = {
        "a": "mine, a red star, night",
        "b": "mine,  a red star , night",
        "c": "mine, a blue heart",
        "d": "mine, a red star, night\n",
        "e": " \n",
        "f": None,
    }
    for number, (name, caption) in enumerate(captions.items()):
        drawing(number).save(folder / f"{name}.png")
        if caption is not None:
            (folder / f"{name}.txt").write_text(caption)
    (folder / "lost.txt").write_text("of no picture")
    (folder / "notes.md").write_text("")
    return folder


def test_missing_empty_and_lost_captions_are_named(folder):
    report = checked(folder)
    assert not report.usable
    assert report.captions.count == 4
    assert report.captions.missing == ["f.png"]
    assert report.captions.empty == ["e.png"]
    assert report.captions.without_picture == ["lost.txt"]
    assert report.unused == ["lost.txt", "notes.md"]
    found = flags(report)
    assert found["f.png"] == ["unusable", "no caption"]
    assert found["e.png"] == ["unusable", "empty caption"]
    assert found["a.png"] == []


def test_what_is_missing_is_as_training_takes_it(folder):
    empty, named = (checked(folder, missing_caption=kind) for kind in ("empty", "filename"))
    assert (empty.usable, named.usable) == (True, True)
    assert (flags(empty)["f.png"], flags(named)["f.png"]) == (["no caption"], [])
    assert [report.pictures[-1].caption for report in (empty, named)] == ["", "f"]
    assert empty.captions.missing == named.captions.missing == ["f.png"]


def test_captions_that_occur_twice_are_grouped(folder):
    assert checked(folder).captions.repeated == [
        {"caption": "mine, a red star, night", "pictures": ["a.png", "d.png"]}
    ]


def test_tags_are_counted_once_a_caption(folder):
    (folder / "a.txt").write_text("mine, mine, a red star, night,,")
    captions = checked(folder, top=2).captions
    assert captions.distinct_tags == 4
    assert captions.tags == [{"tag": "mine", "captions": 4}, {"tag": "a red star", "captions": 3}]
    assert captions.in_every_caption == ["mine"]
    captions = checked(folder, missing_caption="empty").captions
    assert captions.in_every_caption == []


def test_lengths_are_words_without_a_tokenizer(folder):
    captions = checked(folder).captions
    assert (captions.unit, captions.limit) == ("words", None)
    assert (captions.shortest, captions.median, captions.longest) == (4, 5, 6)
    assert captions.long == []


@pytest.mark.parametrize("place", ["", "tokenizer"])
def test_lengths_are_tokens_with_one(place, folder):
    (folder / "a.txt").write_text("star " * 30)
    (folder / "b.txt").write_text("star " * 31)
    (folder / "c.txt").write_text("<|endoftext|>")
    report = checked(folder, tokenizer=demo.MODEL / place)
    captions = report.captions
    assert (captions.unit, captions.limit, captions.longest) == ("tokens", 30, 31)
    assert captions.long == ["b.png"]
    assert flags(report)["b.png"] == ["long caption"]
    assert flags(report)["c.png"] == []


def test_a_tokenizer_that_is_none_is_refused(folder):
    with pytest.raises(ModelError, match="is not a folder"):
        checked(folder, tokenizer=folder / "a.txt")
    with pytest.raises(ModelError, match="holds neither"):
        checked(folder, tokenizer=folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        checked(folder, tokenizer=folder)
