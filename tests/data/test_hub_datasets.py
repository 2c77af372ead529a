"""An HF dataset, as a folder of parquet files: by its columns."""

import shutil

import datasets
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from hn.config import DataConfig
from hn.data.pictures.checks import check_pictures
from hn.data.pictures.decoding import open_picture
from hn.data.pictures.images import examples, load_examples
from hn.data.words.prompts import Prompts, captions_of, check_captions
from hn.errors import DataError
from tests import caches

LIMIT = 2000
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def parquet(tmp_path):
    """Writes a folder with one parquet file; gives the folder."""

    def write(captions, *, image="picture", caption="words"):
        rows = {
            image: [Image.new("RGB", (8, 8), colour) for colour in COLOURS],
            caption: captions,
            "size": [1, 2, 3],
        }
        several = any(isinstance(value, list) for value in captions)
        features = {
            image: ImageFeature(),
            caption: List(Value("string")) if several else Value("string"),
            "size": Value("int64"),
        }
        folder = tmp_path / "set"
        folder.mkdir()
        dataset = Dataset.from_dict(rows, features=Features(features))
        dataset.to_parquet(str(folder / "train.parquet"))
        return str(folder)

    return write


def config(folder, **changes) -> DataConfig:
    columns = {"image_column": "picture", "caption_column": "words"}
    return DataConfig(dataset_name=folder, **{**columns, **changes})


def test_rows_become_examples(parquet):
    dataset = load_examples(config(parquet(["red", "green", "blue"])))
    assert dataset.column_names == [
        "image",
        "caption",
        "name",
        "other_captions",
        "caption_source",
        "mask",
        "caption_prefix",
        "caption_suffix",
        "repeats",
        "loss_weight",
        "regularization",
    ]
    row = dataset[1]
    assert (row["mask"], row["caption_prefix"], row["caption_suffix"]) == (None, None, None)
    assert (row["repeats"], row["loss_weight"], row["regularization"]) == (1, 1.0, False)
    found = list(examples(dataset, "reading"))
    assert [(e.name, e.caption) for e in found] == [
        ("row 0", "red"),
        ("row 1", "green"),
        ("row 2", "blue"),
    ]
    assert [open_picture(e).getpixel((0, 0)) for e in found] == COLOURS
    check_pictures(dataset)


def test_columns_with_the_names_of_the_defaults(parquet):
    folder = parquet(["red", "green", "blue"], image="image", caption="text")
    found = list(examples(load_examples(DataConfig(dataset_name=folder)), "reading"))
    assert [e.caption for e in found] == ["red", "green", "blue"]
    assert [open_picture(e).getpixel((0, 0)) for e in found] == COLOURS


@pytest.mark.parametrize("setting", ["image_column", "caption_column"])
def test_a_wrong_column_is_refused_with_those_there_are(parquet, setting):
    folder = parquet(["red", "green", "blue"])
    with pytest.raises(DataError, match=rf"{setting} 'wrong'.*'picture', 'words', 'size'"):
        load_examples(config(folder, **{setting: "wrong"}))


@pytest.mark.parametrize("empty", [None, ""])
def test_a_row_without_caption_is_refused_or_empty(parquet, empty):
    folder = parquet(["red", empty, "blue"])
    with pytest.raises(DataError, match=r"1 rows.*the first is row 1.*missing_caption to empty"):
        load_examples(config(folder))
    dataset = load_examples(config(folder, missing_caption="empty"))
    assert dataset["caption"][:] == ["red", "", "blue"]


def test_what_is_no_dataset_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"dataset_name '.*empty' cannot be loaded"):
        load_examples(config(str(tmp_path / "empty")))


def test_a_wrong_split_is_refused(parquet):
    with pytest.raises(DataError, match="cannot be loaded"):
        load_examples(config(parquet(["red", "green", "blue"]), dataset_split="tset"))


def test_a_column_of_numbers_is_no_column_of_pictures(parquet):
    with pytest.raises(DataError, match=r"image_column 'size' of .* does not hold pictures"):
        load_examples(config(parquet(["red", "green", "blue"]), image_column="size"))


def test_a_column_of_pictures_is_no_column_of_captions(parquet):
    folder = parquet(["red", "green", "blue"])
    with pytest.raises(DataError, match=r"caption_column 'picture' of .* does not hold texts"):
        load_examples(config(folder, image_column="words", caption_column="picture"))


def test_a_column_of_lists_gives_several_captions(parquet):
    folder = parquet([["red", "crimson"], ["green"], ["blue", "azure", "navy"]])
    dataset = load_examples(config(folder))
    found = [example.captions for example in examples(dataset, "reading")]
    assert found == [("red", "crimson"), ("green",), ("blue", "azure", "navy")]
    assert list(captions_of(dataset)) == found
    prompts = Prompts.of(dataset, ["[filewords]"], "x", config(folder), 0)
    assert {prompts.draw(2, step, 0) for step in range(40)} == set(found[2])
    assert set(prompts.all(LIMIT)) == {"", *found[0], *found[1], *found[2]}
    counted = check_captions(dataset, ["[filewords]"], config(folder))
    assert counted.startswith("captions: 6 of 3 pictures: 0 empty")


def test_the_digest_knows_every_caption_of_a_row(parquet, tmp_path):
    digests = []
    for last in ("navy", "azure"):
        folder = parquet([["red"], ["green"], ["blue", last]])
        dataset = load_examples(config(folder))
        digests.append(caches.digest(dataset))
        shutil.rmtree(folder)
    assert digests[0] != digests[1]


@pytest.mark.parametrize("empty", [None, [], ["red", ""], ["red", None]])
def test_a_list_without_or_with_an_empty_caption_is_refused_or_empty(parquet, empty):
    folder = parquet([["green"], empty, ["blue"]])
    with pytest.raises(DataError, match=r"1 rows.*the first is row 1.*missing_caption to empty"):
        load_examples(config(folder))
    dataset = load_examples(config(folder, missing_caption="empty"))
    assert captions_of(dataset)[1] == (("red", "") if empty else ("",))


def test_lines_of_a_column_are_captions_of_their_own_if_that_is_set(parquet):
    folder = parquet(["red\n\ncrimson", "green", " blue\n"])
    dataset = load_examples(config(folder, caption_lines=True))
    assert list(captions_of(dataset)) == [("red", "crimson"), ("green",), ("blue",)]


@pytest.mark.parametrize(
    ("caption", "reason"), [("a\0b", "holds a NUL character"), ("x" * 65_537, "has 65537 bytes")]
)
def test_a_caption_of_a_column_is_held_to_the_rules_of_files(parquet, caption, reason):
    with pytest.raises(DataError, match=rf"row 1 of .*set: a caption {reason}"):
        load_examples(config(parquet(["red", caption, "blue"])))
