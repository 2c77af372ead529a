"""Files that are whole or absent."""

import os
import resource
from contextlib import contextmanager

import pytest

import hn
from hn.errors import StorageError
from hn.network.module import Hypernetwork
from hn.storage import prove_writable, whole, write_bytes


@contextmanager
def file_size_limit(size: int):
    """Writing more than `size` bytes to a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_written_with_its_folders(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "file", b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"


def test_a_symbolic_link_stays_one(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_the_umask_decides_the_mode(tmp_path):
    umask = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(umask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with file_size_limit(10_000), pytest.raises(StorageError, match="Free some space"):
        write_bytes(path, bytes(20_000))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole(path, "another") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_failed_rename_leaves_the_old_entry_and_nothing_else(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        write_bytes(tmp_path / "file", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        write_bytes(tmp_path / "file" / "below", b"new")


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_good_hypernetwork_survives_a_failed_save(ending, tmp_path):
    path = tmp_path / f"net{ending}"
    small, large = (Hypernetwork.create((dim,), seed=0) for dim in (8, 64))
    hn.save(small, path)
    with file_size_limit(20_000), pytest.raises(StorageError):
        hn.save(large, path)
    assert hn.load(path).dims == (8,)


def test_a_folder_is_made_and_proven_writable_and_stays_empty(tmp_path):
    prove_writable(tmp_path / "a/b", "latent_cache_dir")
    assert not list((tmp_path / "a/b").iterdir())


def test_a_folder_that_cannot_be_written_is_named_with_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(StorageError, match=rf"latent_cache_dir '{folder}' cannot be written"):
            prove_writable(folder, "latent_cache_dir")
    with file_size_limit(0), pytest.raises(StorageError, match="File too large"):
        prove_writable(tmp_path / "full", "latent_cache_dir")
