"""Caches over a hub of our own: what goes there, what comes back, what is refused and how."""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pytest
from datasets import load_dataset

from hn.errors import DataError, HubError, OptionError, StorageError
from hn.hub import fetch_cache, push_cache
from tests.hub_server import READER, STRANGER, WRITER

ENTRIES = pa.schema(
    [
        ("key", pa.binary(16)),
        ("kind", pa.string()),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("values", pa.large_binary()),
    ]
)
PICTURES = pa.schema(
    [
        ("name", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("source", pa.string()),
        ("content", pa.binary(32)),
        ("mask", pa.binary(32)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("size", pa.list_(pa.int32(), 2)),
        ("keys", pa.list_(pa.binary(16))),
        ("weights", pa.binary(16)),
        ("repeats", pa.int32()),
        ("loss_weight", pa.float32()),
        ("regularization", pa.bool_()),
    ]
)
SETTINGS = {
    "pretrained_model_name_or_path": "me/tiny",
    "train_data_dir": "/home/somebody/photos",
    "data": {"resolution": [16, 16], "random_flip": False, "note": "a|b <i>"},
    "login": "hf_someTokenOfSomebody",
}
RECORDED = json.dumps(SETTINGS)


def _write(path, rows, schema):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(path, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def key_of(name, index):
    return f"{name} {index}".encode().ljust(16)


def write_shard(folder, name, kind="moments", count=2):
    rows = [
        {
            "key": key_of(name, index),
            "kind": kind,
            "dtype": "fp32",
            "shape": [2],
            "values": b"\0" * 8,
        }
        for index in range(count)
    ]
    _write(folder / "tensors" / f"{name}.arrow", rows, ENTRIES)


def write_pictures(folder, split, keys, settings=RECORDED):
    rows = [
        {
            "name": f"{index}.png",
            "captions": ["a star", "a red star"],
            "source": "file",
            "content": bytes([index]) * 32,
            "mask": None,
            "width": 20,
            "height": 16,
            "size": [16, 24 if index else 16],
            "keys": [key],
            "weights": None,
            "repeats": 1,
            "loss_weight": 1.0,
            "regularization": False,
        }
        for index, key in enumerate(keys)
    ]
    schema = PICTURES.with_metadata({b"hn": settings.encode()}) if settings else PICTURES
    _write(folder / "pictures" / f"{split}.arrow", rows, schema)


@pytest.fixture
def cache(tmp_path):
    """Three shards, three pictures and one held out, and what a killed writer leaves."""
    folder = tmp_path / "cache"
    write_shard(folder, "one")
    write_shard(folder, "two")
    write_shard(folder, "words", kind="context", count=3)
    write_pictures(folder, "train", [key_of("one", 0), key_of("one", 1), key_of("two", 0)])
    write_pictures(folder, "validation", [key_of("two", 1)])
    for stray in ("tensors/.one.arrow.17.tmp", "tensors/.hidden.arrow", "notes.txt", ".env"):
        (folder / stray).write_text("not for others")
    (folder / "pictures/other.arrow").write_text("neither")
    return folder


def content(folder):
    """The bytes of a cache's own files, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob("*/*.arrow"))
        if path.name not in (".hidden.arrow", "other.arrow")
    }


def test_what_is_pushed_is_fetched_to_the_byte(hub, cache):
    url = push_cache(cache, "me/encoded")
    assert url == f"{hub.url}/datasets/me/encoded"
    assert hub.repositories["datasets", "me/encoded"].private
    stored = hub.files("datasets", "me/encoded")
    assert stored.pop("README.md")
    assert stored == content(cache)
    assert content(fetch_cache("me/encoded")) == stored


def test_the_card_says_what_is_there_and_nothing_of_this_machine(hub, cache):
    push_cache(cache, "me/encoded")
    card = hub.files("datasets", "me/encoded")["README.md"].decode()
    assert "| pictures | train (3), validation (1) |" in card
    assert "| entries | moments (4), context (3) |" in card
    assert "| size in pixels | 16 x 16 (2), 16 x 24 (2) |" in card
    assert f"| all files | {sum(map(len, content(cache).values()))} bytes |" in card
    assert "| pretrained_model_name_or_path | me/tiny |" in card
    assert "| data.resolution | 16 16 |" in card
    assert "| data.note | a?b ?i? |" in card
    for private in ("hf_some", "/home/somebody", str(cache), str(Path.home())):
        assert private not in card
    for column in [*PICTURES.names, *ENTRIES.names]:
        assert f"{column}" in card


@pytest.mark.parametrize("settings", [None, "no JSON", "[1]", '"text"', "{}", '{"a": null}'])
def test_settings_that_are_not_there_or_no_settings(hub, cache, settings):
    train = [key_of("one", 0), key_of("one", 1), key_of("two", 0)]
    write_pictures(cache, "train", train, settings)
    push_cache(cache, "me/encoded")
    card = hub.files("datasets", "me/encoded")["README.md"].decode()
    assert ("| a | null |" if settings == '{"a": null}' else "Not recorded.") in card


def test_anyone_reads_it_with_datasets(hub, cache, tmp_path):
    push_cache(cache, "me/encoded", private=False)
    pictures = load_dataset("me/encoded", "pictures", cache_dir=str(tmp_path / "datasets"))
    assert {split: len(rows) for split, rows in pictures.items()} == {"train": 3, "validation": 1}
    assert pictures["train"][1]["captions"] == ["a star", "a red star"]
    assert pictures["train"][1]["content"] == bytes([1]) * 32
    tensors = load_dataset(
        "me/encoded", "tensors", split="train", cache_dir=str(tmp_path / "datasets")
    )
    assert sorted(tensors["kind"]) == ["context"] * 3 + ["moments"] * 4
    assert set(pictures["train"][0]["keys"]) <= set(tensors["key"])


def test_it_is_streamed_with_datasets(hub, cache):
    push_cache(cache, "me/encoded")
    rows = list(load_dataset("me/encoded", "tensors", split="train", streaming=True))
    assert len(rows) == 7
    assert {row["kind"]: row["values"] for row in rows} == {
        "moments": b"\0" * 8,
        "context": b"\0" * 8,
    }


def test_parts_of_files_are_answered(hub, cache):
    push_cache(cache, "me/encoded")
    files = huggingface_hub.HfFileSystem()
    shard = (cache / "tensors/one.arrow").read_bytes()
    with files.open("datasets/me/encoded/tensors/one.arrow", block_size=100) as file:
        file.seek(200)
        assert file.read(50) == shard[200:250]
    assert [r.headers["range"] for r in hub.requests if "range" in r.headers][-1].startswith(
        "bytes=200-"
    )


@pytest.mark.parametrize("name", ["2024", "null", "1.0", "yes"])
def test_a_name_that_looks_like_something_else(hub, cache, name):
    push_cache(cache, f"me/{name}")
    card = hub.files("datasets", f"me/{name}")["README.md"].decode()
    assert huggingface_hub.DatasetCard(card).data.pretty_name == name


def test_without_held_out_pictures(hub, cache, tmp_path):
    write_pictures(cache, "train", [key_of(name, i) for name in ("one", "two") for i in (0, 1)])
    (cache / "pictures/validation.arrow").unlink()
    push_cache(cache, "me/encoded")
    pictures = load_dataset("me/encoded", "pictures", cache_dir=str(tmp_path / "datasets"))
    assert list(pictures) == ["train"]


def test_pushing_again_uploads_what_is_new_and_removes_what_is_gone(hub, cache):
    push_cache(cache, "me/encoded")
    first = fetch_cache("me/encoded")
    hub.requests.clear()
    push_cache(cache, "me/encoded")
    assert not hub.asked("PUT", "") and not hub.asked("POST", "/commit/")

    write_shard(cache, "three", kind="context")
    (cache / "tensors/two.arrow").unlink()
    (cache / "pictures/validation.arrow").unlink()
    write_pictures(cache, "train", [key_of("one", 0), key_of("one", 1)])
    push_cache(cache, "me/encoded")
    assert len(hub.asked("PUT", "")) == 2  # the new shard, the pictures
    assert len(hub.asked("POST", "/commit/")) == 1
    stored = hub.files("datasets", "me/encoded")
    assert stored.pop("README.md").decode().count("validation") == 0
    assert stored == content(cache)
    assert content(first)["tensors/two.arrow"]  # the revision before is as it was
    assert content(fetch_cache("me/encoded")) == stored


def test_latents_of_other_pictures_stay_at_home(hub, cache, capsys):
    """What earlier pictures, or those of other sets, left in the cache is not published."""
    write_shard(cache, "secret")
    write_pictures(cache, "train", [key_of("one", 0), key_of("one", 1)])  # two 0 is gone
    push_cache(cache, "me/encoded")
    assert "left out: 3 entries" in capsys.readouterr().out
    stored = hub.files("datasets", "me/encoded")
    everything = b"".join(stored.values()) + b"".join(r.body for r in hub.requests)
    assert b"secret" not in everything and key_of("two", 0) not in everything
    assert len([name for name in stored if name.startswith("tensors/")]) == 3
    fetched = fetch_cache("me/encoded")
    kept = [pa.ipc.open_stream(path).read_all() for path in fetched.glob("tensors/*.arrow")]
    held = [row for table in kept for row in table.to_pylist() if row["kind"] == "moments"]
    assert {row["key"] for row in held} == {key_of("one", 0), key_of("one", 1), key_of("two", 1)}
    assert sorted(path.name for path in cache.iterdir()) == [
        *(".env", "notes.txt", "pictures", "tensors")
    ]
    hub.requests.clear()
    push_cache(cache, "me/encoded")  # the same selection is the same files
    assert not hub.asked("PUT", "") and not hub.asked("POST", "/commit/")


def test_a_folder_that_is_not_there(hub, cache):
    with pytest.raises(DataError, match="is not a cache"):
        push_cache(cache / "gone", "me/encoded")


def test_a_cache_that_lacks_an_entry(hub, cache):
    (cache / "tensors/two.arrow").unlink()
    with pytest.raises(DataError, match="lacks 2 entries of its pictures"):
        push_cache(cache, "me/encoded")
    assert not hub.requests


def test_fetching_again_downloads_what_is_missing(hub, cache):
    push_cache(cache, "me/encoded")
    fetch_cache("me/encoded")
    assert len(hub.asked("GET", "/resolve/")) == len(content(cache))  # and not the card
    write_shard(cache, "three", kind="context")
    push_cache(cache, "me/encoded")
    hub.requests.clear()
    fetch_cache("me/encoded")
    assert [path.rpartition("/")[2] for path in hub.asked("GET", "/resolve/")] == ["three.arrow"]
    hub.requests.clear()
    fetch_cache("me/encoded")
    assert not hub.asked("GET", "/resolve/") and not hub.asked("HEAD", "")


def test_a_stopped_push_goes_on_where_it_was(hub, cache):
    """What a push brought before it was stopped is not uploaded again."""
    api = huggingface_hub.HfApi()
    api.create_repo("me/encoded", repo_type="dataset", private=True)
    shard = huggingface_hub.CommitOperationAdd("tensors/one.arrow", cache / "tensors/one.arrow")
    api.preupload_lfs_files("me/encoded", [shard], repo_type="dataset")
    hub.requests.clear()
    push_cache(cache, "me/encoded")
    assert len(hub.asked("PUT", "")) == len(content(cache)) - 1


def test_branches_are_apart(hub, cache):
    push_cache(cache, "me/encoded")
    write_shard(cache, "three", kind="context")
    url = push_cache(cache, "me/encoded", revision="larger")
    assert url == f"{hub.url}/datasets/me/encoded/tree/larger"
    assert "tensors/three.arrow" in content(fetch_cache("me/encoded", revision="larger"))
    assert "tensors/three.arrow" not in content(fetch_cache("me/encoded"))
    with pytest.raises(HubError, match="no such revision"):
        fetch_cache("me/encoded", revision="smaller")


def test_without_a_connection_the_copy_from_before_is_taken_and_said(hub, cache, capsys):
    push_cache(cache, "me/encoded")
    folder = fetch_cache("me/encoded")
    assert "before" not in capsys.readouterr().err
    hub.broken = 503
    assert fetch_cache("me/encoded") == folder
    assert f"as it was fetched before (commit {folder.name[:8]})" in capsys.readouterr().err
    (folder / "tensors/one.arrow").unlink()
    with pytest.raises(HubError, match="it answers 503"):
        fetch_cache("me/encoded")


@pytest.mark.parametrize("repo_id", ["encoded", "me/", "/data/x", "a/b/c", "me/a b", "me/x--y", ""])
def test_an_id_that_is_none(hub, cache, repo_id):
    for act in (lambda: push_cache(cache, repo_id), lambda: fetch_cache(repo_id)):
        with pytest.raises(OptionError, match="owner/name"):
            act()
    assert not hub.requests


def test_pushing_without_a_token(hub, cache, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"no token.*hf auth login.*HF_TOKEN"):
        push_cache(cache, "me/encoded")
    assert not hub.requests
    push_cache(cache, "me/encoded", token=WRITER)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("hf_unknown", "does not accept this token"),
        (READER, "role write"),
        (STRANGER, "must begin with your own name"),
    ],
)
def test_pushing_without_the_right(hub, cache, monkeypatch, token, words):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=words) as caught:
        push_cache(cache, "me/encoded")
    assert token not in str(caught.value)
    assert not hub.repositories


def test_a_token_that_no_header_can_hold_is_not_shown(hub, cache):
    with pytest.raises(HubError) as caught:
        push_cache(cache, "me/encoded", token="hf_secret\n\nwords")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "no right.*the hub says: The hub is full"), (429, "too many"), (500, "answers 500")],
)
def test_a_hub_that_says_no(hub, cache, status, words):
    hub.broken = status
    with pytest.raises(HubError, match=words):
        push_cache(cache, "me/encoded")


def test_a_reader_cannot_push_into_what_is_there(hub, cache):
    push_cache(cache, "me/encoded")
    write_shard(cache, "three", kind="context")
    with pytest.raises(HubError, match="role write"):
        push_cache(cache, "me/encoded", token=READER)


def test_fetching_what_is_not_there_or_not_ours(hub, cache, monkeypatch):
    with pytest.raises(HubError, match="no such repository, or it is private"):
        fetch_cache("me/nothing")
    push_cache(cache, "me/encoded")
    for token in (STRANGER, None):
        monkeypatch.delenv("HF_TOKEN", raising=False)
        with pytest.raises(HubError, match=r"no such repository, or it is private.*hf auth login"):
            fetch_cache("me/encoded", token=token)
    assert fetch_cache("me/encoded", token=READER).is_dir()


@pytest.mark.parametrize("private", [True, False])
def test_pictures_do_not_change_who_sees_them(hub, cache, private):
    push_cache(cache, "me/encoded", private=private)
    hub.requests.clear()
    with pytest.raises(OptionError, match="nothing was uploaded"):
        push_cache(cache, "me/encoded", private=not private)
    assert not hub.asked("PUT", "") and not hub.asked("POST", "/commit/")


def test_a_repository_of_something_else_is_left_alone(hub, cache):
    api = huggingface_hub.HfApi()
    api.create_repo("me/novels", repo_type="dataset", private=True)
    api.upload_file(
        path_or_fileobj=b"once", path_in_repo="data/1.txt", repo_id="me/novels", repo_type="dataset"
    )
    before = hub.files("datasets", "me/novels")
    with pytest.raises(HubError, match=r"not of a cache.*'data/1.txt'.*nothing was uploaded"):
        push_cache(cache, "me/novels")
    assert hub.files("datasets", "me/novels") == before
    with pytest.raises(DataError, match="is not a cache of encoded pictures"):
        fetch_cache("me/novels")


@pytest.mark.parametrize("gone", ["tensors", "pictures"])
def test_a_folder_that_is_no_cache(hub, cache, gone):
    shutil.rmtree(cache / gone)
    with pytest.raises(DataError, match=rf"it has no {gone}/.*cache_latents"):
        push_cache(cache, "me/encoded")
    assert not hub.requests


def test_a_shard_that_is_not_whole(hub, cache):
    shard = cache / "tensors/two.arrow"
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"two\.arrow is damaged.*remove it"):
        push_cache(cache, "me/encoded")
    assert not hub.requests


def test_a_hub_cache_that_cannot_be_written(hub, cache, monkeypatch, tmp_path):
    push_cache(cache, "me/encoded")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file/hub"))
    with pytest.raises(StorageError, match="HF_HOME"):
        fetch_cache("me/encoded")


def test_nobody_answers(hub, cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for act in (lambda: push_cache(cache, "me/encoded"), lambda: fetch_cache("me/encoded")):
        with pytest.raises(HubError, match=r"127\.0\.0\.1:9 cannot be reached .*check the network"):
            act()


def test_this_process_knows_no_other_hub(hub):
    assert os.environ["HF_ENDPOINT"] == huggingface_hub.constants.ENDPOINT == hub.url
