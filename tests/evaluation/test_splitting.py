"""Held-out pictures taken from those to train on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from hn.build.splitting import choose, divide, place
from hn.config import DataConfig
from hn.data.pictures.decoding import Example
from hn.data.pictures.images import load_examples
from hn.errors import DataError
from tests import streamed, tiny


def drawn(folder: Path, count: int) -> Path:
    """Pictures of noise, so that none resembles another."""
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"noise {number}")
    return folder


def examples(folder: Path):
    return load_examples(DataConfig(train_data_dir=str(folder)))


def names(dataset) -> set[str]:
    return set(dataset["name"])


def test_a_share_holds_out_what_stands_below_it():
    places = np.array([0.05, 0.9, 0.2, 0.09])
    assert choose(places, 0.1).tolist() == [True, False, False, True]
    assert choose(places, 0.01).tolist() == [True, False, False, False]  # at least one
    assert choose(places, 3).tolist() == [True, False, True, True]


def test_places_are_even_and_follow_from_content_and_seed(tmp_path):
    folder = drawn(tmp_path / "set", 40)
    sources = [Example("x", {"path": str(path)}, "") for path in sorted(folder.glob("*.png"))]
    first = [place(it, 0) for it in sources]
    assert 0.3 < np.mean(first) < 0.7
    assert first == [place(it, 0) for it in sources]
    assert first != [place(it, 1) for it in sources]


def test_pictures_that_are_added_move_no_other_across(tmp_path):
    folder = drawn(tmp_path / "set", 40)
    before = divide(examples(folder), 0.2, seed=0)
    assert 3 <= len(before.held_out) <= 13  # binomial, within two standard deviations
    assert names(before.train) | names(before.held_out) == names(examples(folder))
    assert not names(before.train) & names(before.held_out)
    for path in folder.glob("1*.png"):
        (folder / f"new {path.name}").write_bytes(path.read_bytes() + b"\0")  # another content
        (folder / f"new {path.stem}.txt").write_text("more")
    after = divide(examples(folder), 0.2, seed=0)
    assert names(before.held_out) <= names(after.held_out)
    assert divide(examples(folder), 0.2, seed=5).held_out["name"] != after.held_out["name"]


def test_what_resembles_a_held_out_picture_is_not_trained_on(tmp_path):
    """The same saved again as JPEG, a larger copy and a mirror image."""
    folder = drawn(tmp_path / "set", 12)
    (held_out,) = divide(examples(folder), 1, seed=0).held_out["name"]
    with Image.open(folder / held_out) as picture:
        copies = {"again.jpg": picture, "large.png": picture.resize((96, 96))}
        copies["mirrored.png"] = ImageOps.mirror(picture)
        for name, copy in copies.items():
            copy.save(folder / name)
            (folder / name).with_suffix(".txt").write_text("a copy")
    found = divide(examples(folder), 1, seed=0)
    together = {*copies, held_out}
    assert not names(found.train) & together
    assert len(found.train) == 11
    assert names(found.held_out) | set(found.excluded) == together
    assert "3 (" in str(found)


def test_an_hf_dataset_is_divided_as_a_folder_is(tmp_path):
    """By content, so the same files are held out; their rows have other names."""
    folder = drawn(tmp_path / "set", 8)
    rows = [
        {"image": path.read_bytes(), "text": path.with_suffix(".txt").read_text()}
        for path in sorted(folder.glob("*.png"))
    ]
    table = streamed.write_parquet(tmp_path / "parquet", rows, 2)
    hosted = load_examples(DataConfig(dataset_name=str(table)))
    captions = [{*divide(it, 0.3, seed=0).held_out["caption"]} for it in (examples(folder), hosted)]
    assert captions[0] == captions[1]


def test_pictures_for_regularization_are_never_held_out(tmp_path):
    for name in ("own", "prior"):
        tiny.make_pictures(tmp_path / name, 6, size=(20, 20))
    drawn(tmp_path / "noise", 5)
    table = tmp_path / "folders.toml"
    table.write_text(
        '[[folder]]\npath = "noise"\n[[folder]]\npath = "prior"\nregularization = true\n'
    )
    dataset = load_examples(DataConfig(train_folders=str(table)))
    found = divide(dataset, 4, seed=0)
    assert all(name.startswith("noise/") for name in found.held_out["name"])
    with pytest.raises(DataError, match=r"validation_split 5 leaves nothing to train on"):
        divide(dataset, 5, seed=0)
