"""Every picture decoded once, in threads: what is kept of it, and in which order."""

import hashlib
import threading
import time

import pytest
from datasets import Dataset
from PIL import Image

from hn.config import DataConfig
from hn.data.cache.index import Contents
from hn.data.parallel import AHEAD, in_order
from hn.data.pictures import checks, columns
from hn.data.pictures.checks import check_pictures
from hn.data.pictures.columns import with_counts
from hn.data.pictures.decoding import decode
from hn.data.pictures.images import load_examples, read_folder
from hn.errors import DataError
from tests import tiny
from tests.caches import digest


@pytest.fixture
def folder(tmp_path):
    return tiny.make_pictures(tmp_path / "set", 5)


def read(folder) -> Dataset:
    return read_folder(folder, "empty", setting="train_data_dir")


def test_pictures_that_a_cache_knows_are_not_decoded_again(folder, monkeypatch):
    known = Contents(
        [hashlib.sha256((folder / f"{it}.png").read_bytes()).digest() for it in (1, 3)]
    )
    decoded = []
    monkeypatch.setattr(checks, "decode", lambda it: decoded.append(it.name) or decode(it))
    check_pictures(read(folder), known)
    assert sorted(decoded) == ["0.png", "2.png", "4.png"]
    (folder / "3.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"3\.png"):
        check_pictures(read(folder), known)


def test_faults_are_listed_in_the_order_of_the_pictures(folder):
    for number in (4, 1, 3):
        (folder / f"{number}.png").write_bytes(b"<html>")
    with pytest.raises(DataError) as caught:
        check_pictures(read(folder))
    headline, *lines = str(caught.value).splitlines()
    assert headline.startswith("3 of 5 pictures cannot be used; mend or remove them")
    assert [line.split(":")[0].strip() for line in lines] == ["1.png", "3.png", "4.png"]


def bare(dataset) -> Dataset:
    return dataset.remove_columns(
        ["caption_prefix", "caption_suffix", "repeats", "loss_weight", "regularization"]
    )


def test_the_digest_knows_how_each_picture_counts(folder):
    dataset = read(folder)
    changes = [
        {},
        {"repeats": 2},
        {"loss_weight": 0.5},
        {"regularization": True},
        {"caption_prefix": ""},
        {"caption_suffix": ""},
        {"caption_prefix": "a"},
    ]
    digests = [digest(with_counts(bare(dataset), **change)) for change in changes]
    assert digests[0] == digest(dataset)
    assert len(set(digests)) == len(digests)


def test_the_digest_knows_the_masks(folder):
    data = DataConfig(train_data_dir=str(folder), use_mask_files=True)
    digests = [digest(load_examples(data))]
    for level in (10, 20):
        Image.new("L", (20, 16), level).save(folder / "0.mask.png")
        digests.append(digest(load_examples(data)))
    assert len(set(digests)) == 3
    (folder / "0.mask.png").rename(folder / "1.mask.png")
    assert digest(load_examples(data)) not in digests


def test_the_digest_does_not_depend_on_how_a_data_set_is_stored(folder, monkeypatch):
    """In one piece or in many, or as rows chosen of another."""
    dataset = read(folder)
    expected = digest(dataset)
    assert digest(dataset.select([4, 3, 2, 1, 0]).select([4, 3, 2, 1, 0])) == expected
    monkeypatch.setattr(columns, "ROWS", 2)
    pieces = read(folder)
    monkeypatch.setattr(columns, "ROWS", 1000)
    assert digest(pieces) == expected
    assert digest(dataset.select([1, 0, 2, 3, 4])) != expected


def test_results_come_in_order_and_in_several_threads():
    seen = set()

    def slow(number):
        seen.add(threading.get_ident())
        time.sleep(0.002 * (number % 3))
        return number * 2

    assert list(in_order(slow, range(50), 4)) == [2 * number for number in range(50)]
    assert len(seen) > 1
    assert threading.get_ident() not in seen


def test_only_a_few_items_are_taken_ahead():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_order(lambda number: number, items(), 2)
    for _ in range(10):
        next(results)
    assert len(taken) <= 10 + 2 * AHEAD
    results.close()
    assert len(taken) <= 10 + 2 * AHEAD


def test_what_a_call_raises_is_raised_in_its_turn():
    def picky(number):
        if number == 3:
            raise DataError("three")
        return number

    results = in_order(picky, range(100), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="three"):
        next(results)
