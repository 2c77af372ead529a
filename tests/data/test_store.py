"""Encoded pictures on disk."""

import datasets
import pyarrow as pa
import pytest
import torch

from hn.data.cache.store import AT_ONCE, Store, key_of
from hn.data.cache.tensor_files import KEY_BYTES
from hn.errors import DataError, StorageError


def tensors(*numbers):
    return [torch.full((1, 2, 3), float(number)) for number in numbers]


def keys(*numbers):
    return [key_of(str(number)) for number in numbers]


def test_what_is_written_is_read_back_by_its_key(tmp_path):
    store = Store(tmp_path / "new")
    assert store.missing(keys(1, 2)) == [0, 1]
    store.write("moments", keys(3, 1, 2), tensors(3, 1, 2))
    store.write("moments", keys(4), [torch.ones(2, 2, 4, 1, 1)])
    for reader in (store, Store(tmp_path / "new")):
        assert len(reader) == 4
        assert reader.missing(keys(1, 5, 4, 6)) == [1, 3]
        found = reader.read(keys(2, 3, 2, 4))
        assert [tuple(tensor.shape) for tensor in found] == [(1, 2, 3)] * 3 + [(2, 2, 4, 1, 1)]
        assert [float(tensor.mean()) for tensor in found] == [2, 3, 2, 1]


def test_keys_with_zero_bytes_are_told_apart(tmp_path):
    """Numpy drops trailing zeros of byte strings where it can."""
    store = Store(tmp_path)
    near = [bytes([1, *[0] * (KEY_BYTES - 1)]), bytes([1, *[0] * (KEY_BYTES - 2), 1])]
    store.write("moments", near[:1], tensors(1))
    assert store.missing([*near, bytes(KEY_BYTES)]) == [1, 2]
    store.write("moments", [bytes(KEY_BYTES)], tensors(2))
    assert float(store.read([bytes(KEY_BYTES)])[0].mean()) == 2


def test_keys_that_share_their_first_half_are_told_apart(tmp_path):
    store = Store(tmp_path)
    near = [b"8 bytes." + number.to_bytes(8, "big") for number in (5, 1, 9, 4)]
    store.write("moments", near[:3], tensors(5, 1, 9))
    store.write("moments", keys(1), tensors(7))
    assert store.missing([*reversed(near), *keys(1, 2)]) == [0, 5]
    assert [float(it.mean()) for it in store.read([*near[:3], *keys(1)])] == [5, 1, 9, 7]
    assert Store(tmp_path).lacks(pa.py_buffer(b"".join(near))) == 1


def test_entries_of_one_form_are_read_as_one_tensor(tmp_path):
    store = Store(tmp_path)
    many = range(AT_ONCE + 6)
    store.write("moments", keys(*many), tensors(*many))
    turned = [*reversed(many), 3]
    assert torch.equal(store.stack(keys(*turned)), torch.stack(tensors(*turned)))


def test_a_shard_that_is_cut_off_while_in_use_is_named(tmp_path):
    store = Store(tmp_path)
    store.write("moments", keys(1, 2), tensors(1, 2))
    (shard,) = tmp_path.glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(DataError, match=rf"{shard.name} was cut off while in use"):
        store.stack(keys(1, 2))
    shard.unlink()
    with pytest.raises(DataError, match=rf"cannot read .*{shard.name}: No such file"):
        store.read(keys(1))


def test_parts_of_a_key_do_not_run_together():
    assert key_of("ab", "c") != key_of("a", "bc")
    assert key_of("ab") == key_of(b"ab")


def test_an_entry_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match="lacks 2 of 3 entries"):
        store = Store(tmp_path)
        store.write("moments", keys(1), tensors(1))
        store.read(keys(1, 2, 3))


def test_another_process_writes_meanwhile(tmp_path):
    first, second = Store(tmp_path), Store(tmp_path)
    first.write("moments", keys(1), tensors(1))
    assert second.missing(keys(1)) == [0]
    second.refresh()
    assert second.missing(keys(1)) == []


def test_equal_content_gives_equal_files(tmp_path):
    for name in "ab":
        Store(tmp_path / name).write("moments", keys(1, 2), tensors(1, 2))
    (first,), (second,) = ((tmp_path / name).iterdir() for name in "ab")
    assert (first.name, first.read_bytes()) == (second.name, second.read_bytes())


@pytest.mark.parametrize("content", [b"", b"no arrow file", None])
def test_a_damaged_shard_is_named_and_its_rows_are_missing(tmp_path, content):
    Store(tmp_path).write("moments", keys(1), tensors(1))
    (shard,) = tmp_path.glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:-200] if content is None else content)
    store = Store(tmp_path)
    assert store.damaged == [shard.name]
    assert store.missing(keys(1)) == [0]
    store.write("moments", keys(1), tensors(1))  # under the same name
    for reader in (store, Store(tmp_path)):
        assert reader.damaged == []
        assert float(reader.read(keys(1))[0].mean()) == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="latent_cache_dir"):
        Store(tmp_path / "file" / "cache").write("moments", keys(1), tensors(1))


def test_datasets_reads_the_shards(tmp_path):
    Store(tmp_path / "cache").write("moments", keys(1, 2), tensors(1, 2))
    read = datasets.load_dataset(
        "arrow",
        data_files=str(tmp_path / "cache/*.arrow"),
        split="train",
        cache_dir=str(tmp_path / "hf"),
    )
    assert read["key"][:] == keys(1, 2)
    assert read["shape"][0] == [1, 2, 3]
