"""Several folders of pictures in one run, each with how it counts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hn.config import DataConfig
from hn.data.pictures import images
from hn.data.pictures.checks import check_pictures
from hn.data.pictures.folder_table import read_folder_table
from hn.data.pictures.images import examples, load_examples
from hn.data.words.captions import load_template
from hn.data.words.prompts import Prompts, check_captions
from hn.errors import DataError
from tests import runs

LIMIT = 2000


@pytest.fixture
def table(tmp_path):
    """Writes a table; gives its path."""

    def write(content: str) -> Path:
        file = tmp_path / "folders.toml"
        file.write_text(content, encoding="utf-8")
        return file

    return write


def make(folder: Path, **captions: str) -> Path:
    """A folder of pictures by stem, with these captions."""
    folder.mkdir(parents=True)
    for number, (stem, caption) in enumerate(captions.items()):
        Image.new("RGB", (16, 16), (number * 40, len(folder.name), 0)).save(folder / f"{stem}.png")
        (folder / f"{stem}.txt").write_text(caption)
    return folder


@pytest.fixture
def three(tmp_path, table) -> DataConfig:
    """Three cats that come up twice, a dog, two animals for regularization."""
    make(tmp_path / "cats", a="a cat", b="cat, [name]", c="x")
    make(tmp_path / "pets/dogs", a="a dog")
    make(tmp_path / "class", a="an animal, [name]", b="animal")
    file = table(
        '[[folder]]\npath = "cats"\nrepeats = 2\n'
        '[[folder]]\npath = "pets/dogs"\nloss_weight = 0.5\ncaption_prefix = "my "\n'
        'caption_suffix = ""\n'
        '[[folder]]\npath = "class"\nregularization = true\nloss_weight = 2\n'
    )
    return DataConfig(train_folders=str(file), caption_prefix="the ", caption_suffix="!")


def test_the_folders_become_one_data_set_with_how_each_counts(three, capsys):
    dataset = load_examples(three)
    assert dataset["name"][:] == [
        *("cats/a.png", "cats/b.png", "cats/c.png", "dogs/a.png", "class/a.png", "class/b.png")
    ]
    assert dataset["repeats"][:] == [2, 2, 2, 1, 4, 4]  # 2 beside 7: 3.5 rounded up
    assert dataset["loss_weight"][:] == [1, 1, 1, 0.5, 2, 2]
    assert dataset["regularization"][:] == [False] * 4 + [True] * 2
    assert dataset["caption_prefix"][:] == [None] * 3 + ["my "] + [None] * 2
    assert dataset["caption_suffix"][:] == [None] * 3 + [""] + [None] * 2
    assert dataset.features["repeats"].dtype == "int32"
    assert dataset.features["loss_weight"].dtype == "float32"
    assert "regularization: 2 pictures x 4 beside 7\n" in capsys.readouterr().out


def test_a_prompt_is_worded_as_the_folder_says(three):
    dataset = load_examples(three)
    prompts = Prompts.of(dataset, ["by [name]: [filewords]", "[filewords]"], "art", three, 0)
    assert [prompts.plain(picture) for picture in range(6)] == [
        ["by art: the a cat!"],
        ["by art: the cat, art!"],
        ["by art: the x!"],
        ["by art: my a dog"],
        ["an animal, [name]"],
        ["animal"],
    ]
    for picture in range(6):
        drawn = {prompts.draw(picture, step, 0) for step in range(40)}
        assert len(drawn) == (1 if picture > 3 else 2)
        assert prompts.plain(picture)[0] in drawn
        assert drawn <= set(prompts.all(LIMIT))
    assert len(prompts.all(LIMIT)) == 1 + 4 * 2 + 2


def test_a_caption_for_regularization_is_left_out_as_often_as_others(three):
    """The empty prompt is what guidance leads away from; it too is to stay as it was."""
    config = DataConfig(train_folders=three.train_folders, caption_dropout=0.5)
    prompts = Prompts.of(load_examples(three), ["[filewords]"], "art", config, 0)
    dropped = [
        [step for step in range(60) if not prompts.draw(picture, step, 0)] for picture in (0, 5)
    ]
    assert dropped[0] == dropped[1]
    assert 15 < len(dropped[0]) < 45


def test_a_folder_may_have_its_own_frame_for_regularization(tmp_path, table):
    make(tmp_path / "a", x="cat")
    make(tmp_path / "b", x="animal")
    file = table(
        '[[folder]]\npath = "a"\n[[folder]]\npath = "b"\nregularization = true\n'
        'caption_prefix = "photo, "\nmissing_caption = "empty"\n'
    )
    config = DataConfig(train_folders=str(file), caption_prefix="sks, ")
    prompts = Prompts.of(load_examples(config), load_template("style"), "it", config, 0)
    assert prompts.plain(1) == ["photo, animal"]
    assert "sks, cat" in prompts.plain(0)[0]


def test_a_folder_may_treat_missing_captions_its_own_way(tmp_path, table):
    (make(tmp_path / "a", one="x") / "one.txt").unlink()
    (make(tmp_path / "b", two="x") / "two.txt").unlink()
    content = '[[folder]]\npath = "a"\nmissing_caption = "{}"\n[[folder]]\npath = "b"\n'
    config = DataConfig(train_folders=str(table(content.format("filename"))))
    with pytest.raises(DataError, match=r"path '.*b' has captions.*\n  two\.png has no caption"):
        load_examples(config)
    config = DataConfig(train_folders=config.train_folders, missing_caption="empty")
    assert load_examples(config)["caption"][:] == ["one", ""]


def test_faults_of_all_folders_are_told_together(tmp_path, table):
    for name in "ab":
        (make(tmp_path / name, one="x") / "one.txt").unlink()
    file = table('[[folder]]\npath = "a"\n[[folder]]\npath = "b"\n')
    with pytest.raises(DataError) as caught:
        load_examples(DataConfig(train_folders=str(file)))
    assert str(caught.value).count("one.png has no caption") == 2


def test_braces_in_the_frame_of_a_folder_are_checked(three, tmp_path, table):
    file = table('[[folder]]\npath = "cats"\n[[folder]]\npath = "class"\ncaption_suffix = "{a"\n')
    config = DataConfig(train_folders=str(file), wildcards=True)
    with pytest.raises(DataError, match=r"caption_suffix: '\[filewords\]\{a': a brace"):
        check_captions(load_examples(config), ["[filewords]"], config)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a"], ["p.png"]),
        (["x/a", "x/b"], ["a/p.png", "b/p.png"]),
        (["x/a", "y/a"], ["x/a/p.png", "y/a/p.png"]),
        (["x/a", "./y/../y/a", "x/b"], ["x/a/p.png", "./y/../y/a/p.png", "x/b/p.png"]),
    ],
)
def test_names_are_unique_in_a_run(tmp_path, table, paths, names):
    for folder in ("x/a", "x/b", "y/a"):
        make(tmp_path / folder, p="x")
    file = table("".join(f'[[folder]]\npath = "{path}"\n' for path in paths))
    dataset = load_examples(DataConfig(train_folders=str(file)))
    assert [example.name for example in examples(dataset, "reading")] == names


def test_a_fault_of_a_picture_names_its_folder(three, tmp_path):
    (tmp_path / "pets/dogs/a.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"1 of 6 pictures.*\n  dogs/a\.png: cannot be read"):
        check_pictures(load_examples(three))


KEYS = "path, repeats, loss_weight, regularization, missing_caption, caption_prefix, caption_suffix"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("repeat = 2", f"unknown key 'repeat' (did you mean 'repeats'?); the keys are {KEYS}"),
        ("label = 'x'", f"unknown key 'label'; the keys are {KEYS}"),
        ("repeats = 0", "repeats must be a whole number from 1 to 1000000; found 0"),
        ("repeats = 1.5", "from 1 to 1000000; found 1.5"),
        ("repeats = true", "from 1 to 1000000; found True"),
        ("repeats = '2'", "from 1 to 1000000; found '2'"),
        ("repeats = 1000001", "from 1 to 1000000; found 1000001"),
        ("loss_weight = 0", "loss_weight must be a number from 0.000001 to 1000000; found 0"),
        ("loss_weight = -1.0", "from 0.000001 to 1000000; found -1.0"),
        ("loss_weight = nan", "from 0.000001 to 1000000; found nan"),
        ("loss_weight = inf", "from 0.000001 to 1000000; found inf"),
        ("loss_weight = true", "from 0.000001 to 1000000; found True"),
        ("regularization = 1", "regularization must be true or false; found 1"),
        ("missing_caption = 'x'", "must be stop or filename or template or empty; found 'x'"),
        ("missing_caption = []", "must be stop or filename or template or empty; found ()"),
        ("caption_prefix = 1", "caption_prefix must be a text; found 1"),
        ("caption_suffix = false", "caption_suffix must be a text; found False"),
    ],
)
def test_what_a_table_may_not_hold(tmp_path, table, keys, message):
    make(tmp_path / "a", x="")
    with pytest.raises(DataError) as caught:
        read_folder_table(table(f'[[folder]]\npath = "a"\n{keys}\n'))
    headline, line = str(caught.value).splitlines()
    assert headline == f"train_folders '{tmp_path / 'folders.toml'}' cannot be used:"
    assert line.startswith("  [[folder]] 1: ")
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no [[folder]] table, but ()"),
        ("folder = []", "holds no [[folder]] table"),
        ("folder = [1]", "holds no [[folder]] table"),
        ("[folder]\npath = 'a'", "holds no [[folder]] table, but ('folder')"),
        ("[[folders]]\npath = 'a'", "holds no [[folder]] table, but ('folders')"),
        ("[[folder]]\npath = 'a'\n[[folders]]\n", "unknown 'folders' (did you mean 'folder'?)"),
        ("[[folder]]\nrepeats = 1", "[[folder]] 1: it has no path"),
        ("[[folder]]\npath = ''", "[[folder]] 1: path must be the name of a folder; found ''"),
        ("[[folder]]\npath = 'a\\u0000'", "is not a folder"),
        ('[[folder]]\npath = "a\\u0000"', "path must be the name of a folder; found"),
        ("[[folder]]\npath = 'a'\nregularization = true", "every folder is for regularization"),
        ("[[folder]", "cannot read"),
        ("[[folder]]\npath = 'a'\n[[folder]]\npath = 'x/../a'", "is the folder of [[folder]] 1"),
        ("[[folder]]\npath = 'a'\n[[folder]]\npath = 'link'", "is the folder of [[folder]] 1"),
        ("[[folder]]\npath = 'loop'", "is not a folder"),
    ],
)
def test_what_a_file_of_tables_may_not_hold(tmp_path, table, content, message):
    make(tmp_path / "a", x="")
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError) as caught:
        read_folder_table(table(content))
    assert message in str(caught.value)


def test_all_faults_of_a_file_are_told_together(tmp_path, table):
    make(tmp_path / "a", x="")
    with pytest.raises(DataError) as caught:
        read_folder_table(
            table(
                'x = 1\n[[folder]]\npath = "a"\nrepeats = 0\nlosweight = 1\n'
                '[[folder]]\npath = "gone"\n[[folder]]\npath = "a"\n[[folder]]\npath = "a"\n'
            )
        )
    headline, *lines = str(caught.value).splitlines()
    assert headline == f"train_folders '{tmp_path / 'folders.toml'}' cannot be used:"
    assert [line.split(":")[0].strip() for line in lines] == [
        *("unknown 'x'; there is nothing but [[folder]] tables", "[[folder]] 1", "[[folder]] 1"),
        *("[[folder]] 2", "[[folder]] 4"),
    ]


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    for name in ("gone.toml", "bad.toml"):
        with pytest.raises(DataError, match=f"train_folders: cannot read '.*{name}'"):
            read_folder_table(tmp_path / name)


def test_too_many_entries_are_refused(three, monkeypatch):
    """A column of 32 bits counts them; so many need thousands of pictures."""
    monkeypatch.setattr(images, "MAX_ENTRIES", 15)
    assert np.sum(load_examples(three)["repeats"][:]) == 15
    monkeypatch.setattr(images, "MAX_ENTRIES", 14)
    with pytest.raises(DataError, match=r"makes 15 entries .* at most 14 .* lower repeats"):
        load_examples(three)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_of_several_folders(model, three, tmp_path, capsys):
    flags = runs.settings(
        model, tmp_path, tmp_path, train_data_dir=None, train_folders=three.train_folders
    )
    assert runs.train_here(flags) == 0
    said = capsys.readouterr().out
    assert "captions: 6 of 6 pictures" in said
    assert "regularization: 2 pictures x 4 beside 7" in said
    moved = tmp_path / "table elsewhere.toml"
    moved.write_text(Path(three.train_folders).read_text())
    again = [str(moved) if flag == three.train_folders else flag for flag in flags]
    changes = ["--resume_from_checkpoint", "latest", "--max_train_steps", "8"]
    assert runs.train_here([*again, *changes]) == 0
    moved.write_text(moved.read_text().replace("repeats = 2", "repeats = 3"))
    assert runs.train_here([*again, *changes[:2], "--max_train_steps", "9"]) == 2
    assert "pictures: " in capsys.readouterr().err
