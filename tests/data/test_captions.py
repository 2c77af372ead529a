"""Captions, templates and tags by the web UI's rules, held against what it drew itself."""

from pathlib import Path
from random import Random

import pytest
from PIL import Image

from hn.config import DataConfig
from hn.data.pictures.images import load_examples, read_configured_folder
from hn.data.words.captions import (
    MAX_BYTES,
    TEMPLATES,
    draw_prompt,
    filename_caption,
    fill,
    load_template,
    parse_template,
    read_caption,
)
from hn.errors import DataError
from tests import golden

CASES = golden.read_json("captions.json")
# The web UI keeps a byte order mark as the first letter of the prompt; we take it off.
WITH_MARK = "\ufeffbom text"


@pytest.mark.parametrize("case", CASES["filename_to_caption"], ids=str)
def test_a_files_name_becomes_the_web_uis_caption(case):
    stem = Path(case["filename"]).stem
    arguments = stem, case["word_regex"], case["join_string"]
    if "raises" in case:
        with pytest.raises(TypeError):
            filename_caption(*arguments)
    else:
        assert filename_caption(*arguments) == case["caption"]


@pytest.mark.parametrize("case", CASES["companion_text"], ids=lambda c: repr(c["companion_text"]))
def test_the_text_beside_a_picture_is_its_caption_to_the_letter(case, tmp_path):
    picture = tmp_path / case["filename"]
    text = case["companion_text"]
    picture.with_suffix(".txt").write_bytes(text.encode())
    deviation = "\ufeff" if text == WITH_MARK else ""
    caption = read_caption(picture)
    assert deviation + caption == case["caption"]
    prompt = fill(case["template"], deviation + caption, case["placeholder"])
    assert prompt == case["cond_text"]


@pytest.mark.parametrize("case", CASES["templates"], ids=lambda c: repr(c["template_file_content"]))
def test_templates_are_read_and_drawn_as_by_the_web_ui(case, tmp_path):
    file = tmp_path / "template.txt"
    file.write_bytes(case["template_file_content"].encode())
    if "raises" in case:
        with pytest.raises(DataError, match="is empty"):
            load_template(str(file))
        return
    lines = load_template(str(file))
    assert lines == case["parsed_lines"]
    caption = filename_caption(Path(case["filename"]).stem)
    drawn = [draw_prompt(caption, lines, case["placeholder"], Random(s)) for s in case["seeds"]]
    assert drawn == case["cond_text_by_seed"]


@pytest.mark.parametrize("case", CASES["tag_shuffle_dropout"], ids=str)
def test_tags_are_shuffled_and_left_out_as_by_the_web_ui(case):
    random = Random(case["seed"])
    lines = parse_template(case["template_file_content"])
    drawn = [
        draw_prompt(
            case["caption"],
            lines,
            case["placeholder"],
            random,
            shuffle_tags=case["shuffle_tags"],
            tag_dropout=case["tag_drop_out"],
        )
        for _ in case["outputs"]
    ]
    assert drawn == case["outputs"]


def test_only_a_line_end_ends_a_line_of_a_template():
    assert parse_template("a\x0bb\u2028c\x85d\n e ") == ["a\x0bb\u2028c\x85d", "e"]


@pytest.mark.parametrize("setting", ["train_data_dir", "validation_data_dir"])
def test_the_settings_make_captions_of_the_names_of_a_folder(tmp_path, setting):
    """The web UI's numbering, words and joining reach training and held-out pictures."""
    Image.new("RGB", (8, 8)).save(tmp_path / "00012-3-red_cat 4.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "written.png")
    (tmp_path / "written.txt").write_text("as_it is")
    words = {"filename_word_regex": "[a-z]+", "filename_join_string": ", "}
    data = DataConfig(
        **{setting: str(tmp_path)}, missing_caption="filename", resolution=(16,), **words
    )
    if setting == "train_data_dir":
        dataset = load_examples(data)
    else:
        dataset = read_configured_folder(data, "validation_data_dir")
    assert list(dataset["caption"]) == ["red, cat", "as_it is"]


def test_a_missing_caption_stops_or_is_made(tmp_path):
    picture = tmp_path / "01-a cat.png"
    with pytest.raises(DataError, match=r"no caption 01-a cat\.txt.*filename, template or empty"):
        read_caption(picture)
    assert read_caption(picture, "filename") == "a cat"
    assert read_caption(picture, "empty") == ""


FAULTS = {
    "latin-1": ("caf\xe9".encode("latin-1"), r"not UTF-8 text \(byte 3\).*iconv"),
    "utf-16": ("cat".encode("utf-16-le"), r"NUL character \(byte 1\)"),
    "too-long": (b"a" * (MAX_BYTES + 1), "has 65537 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_caption_that_is_no_text_is_refused_with_its_name(fault, tmp_path):
    data, message = FAULTS[fault]
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(DataError, match=rf"x\.txt.*{message}"):
        read_caption(tmp_path / "x.png")


def test_the_longest_caption_is_read(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"a" * MAX_BYTES)
    assert len(read_caption(tmp_path / "x.png")) == MAX_BYTES


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.txt")))
def test_our_templates_use_the_caption(name):
    lines = load_template(name)
    assert all("[filewords]" in line for line in lines)


def test_an_unknown_template_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match="'stile' is neither one of none, style, subject nor"):
        load_template("stile")
