"""Runs that share what they encode: what is encoded again, why, and that nothing else changes."""

import os
import re
import shutil
import signal
import threading
import time

import pytest
import torch
from PIL import Image

from hn.config import DataConfig
from hn.data.cache import caching
from hn.data.cache.contexts import Contexts
from hn.data.cache.index import Index
from hn.data.cache.store import Store
from hn.data.cache.workers import Workers
from hn.data.pictures.images import read_folder
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.errors import DataError, NumericsError
from tests import caches, runs, tiny

NAME = "cache_latents"
TOOL = [*runs.PYTHON[:1], str(runs.ROOT / f"tools/{NAME}.py")]
TORCHRUN = [*runs.TORCHRUN[:-1], TOOL[1]]


@pytest.fixture(scope="module")
def base(model):
    return BaseModel.load(str(model))


@pytest.fixture
def folder(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / "pictures")


@pytest.fixture
def encode(base, folder, tmp_path, capsys):
    """Encode through the cache; returns the latents, how many entries are new, and what is said."""

    def encode_now(cache="cache", seed=0, **changes):
        dataset = read_folder(folder, "stop", setting="train_data_dir")
        before = len(Store(tmp_path / cache / "tensors"))
        capsys.readouterr()
        config = DataConfig(**{"resolution": (16,), **changes})
        latents = caches.encode(tmp_path / cache, dataset, base, config, seed)
        new = len(Store(tmp_path / cache / "tensors")) - before
        return latents, new, capsys.readouterr().out

    return encode_now


def test_an_unchanged_set_encodes_nothing(encode):
    first, new, said = encode()
    assert new == 6
    assert "latents: 0 of 6 pictures were in the cache\nencoded, not there yet: 6 (" in said
    again, new, said = encode()
    assert (new, said) == (0, "latents: 6 of 6 pictures were in the cache\n")
    assert torch.equal(caches.means(first), caches.means(again))
    assert first.index.about == again.index.about


def test_of_two_that_are_the_same_neither_was_there_before(encode, folder):
    shutil.copy(folder / "3.png", folder / "3b.png")
    (folder / "3b.txt").write_text("a twin")
    _, new, said = encode()
    assert new == 6
    assert "latents: 0 of 7 pictures were in the cache\nencoded, not there yet: 7 (" in said


def test_editing_one_picture_encodes_one(encode, folder):
    before, *_ = encode()
    Image.open(folder / "2.png").rotate(180).save(folder / "2.png")
    after, new, said = encode()
    assert new == 1
    assert "5 of 6" in said
    assert "encoded, changed: 1 ('2.png')" in said
    changed = (caches.means(before) != caches.means(after)).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False, False, False]
    assert before.index.about.digest != after.index.about.digest


def test_turning_one_picture_by_its_exif_data_encodes_one(encode, folder):
    encode()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "4.png").save(folder / "4.png", exif=exif)
    latents, new, _ = encode()
    assert new == 1
    assert latents.index.table["width"][4].as_py() == 16
    assert latents.index.table["height"][4].as_py() == 20


def test_new_names_and_captions_encode_nothing_and_a_new_picture_one(encode, folder):
    before, *_ = encode()
    (folder / "0.txt").write_text("another caption")
    for ending in ("png", "txt"):
        (folder / f"1.{ending}").rename(folder / f"9.{ending}")
    shutil.copy(folder / "3.png", folder / "3b.png")
    (folder / "3b.txt").write_text("a twin")
    after, new, _ = encode()
    assert new == 0
    assert after.index.words["caption"][0] == "another caption"
    assert after.index.about.digest != before.index.about.digest
    tiny.make_pictures(folder.parent / "more", 1, size=(24, 16))
    shutil.copy(folder.parent / "more/0.png", folder / "5b.png")
    (folder / "5b.txt").write_text("new")
    _, new, said = encode()
    assert new == 1
    assert "encoded, new: 1 ('5b.png')" in said


@pytest.mark.parametrize(
    ("changes", "new", "reason"),
    [
        ({"resolution": (24, 16)}, 6, "another resolution"),
        ({"resize_mode": "stretch"}, 6, "another resize_mode"),
        ({"random_flip": True}, 6, "another random_flip"),
        ({"random_crop": True}, 24, "another random_crop"),
        ({"random_crop": True, "seed": 1}, 24, "another random_crop"),
        ({"use_alpha_weights": True}, 12, "another use_alpha_weights"),
        ({"latent_cache_dtype": "fp16"}, 6, "another latent_cache_dtype"),
    ],
    ids=str,
)
def test_another_framing_encodes_what_it_changes(encode, folder, changes, new, reason):
    for path in folder.glob("*.png"):  # with more places for crops than are drawn
        Image.open(path).resize((4000, 16)).save(path)
    encode()
    _, found, said = encode(**changes)
    assert found == new
    assert f"encoded, {reason}: 6 (" in said


def test_a_crop_more_and_a_picture_more_leave_the_other_crops(encode, folder):
    crops = {"random_crop": True, "crops_per_image": 2}
    for path in folder.glob("*.png"):
        Image.open(path).resize((4000, 16)).save(path)
    assert encode(**crops)[1] == 12
    assert encode(**crops | {"crops_per_image": 3})[1] == 6
    for ending in ("png", "txt"):
        (folder / f"0.{ending}").unlink()
    assert encode(**crops)[1] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"shuffle_tags": True, "tag_dropout": 0.5, "caption_dropout": 0.5, "template": "style"},
        {"latent_sampling": "random"},
        {"vae_batch_size": 4},
        {"seed": 1},
    ],
    ids=str,
)
def test_what_is_drawn_while_training_is_in_no_key(encode, changes):
    encode()
    assert encode(**changes)[1] == 0


def test_another_autoencoder_encodes_all(encode, base):
    encode()
    parameter = next(base.vae.parameters())
    before = parameter.detach().clone()
    try:
        parameter.view(-1)[0] += 1e-3
        del base.vae_fingerprint
        _, new, said = encode()
        assert new == 6
        assert "encoded, another autoencoder: 6" in said
    finally:
        parameter.copy_(before)
        del base.vae_fingerprint
    assert encode()[1] == 0


def test_what_was_lost_is_made_again(encode, tmp_path):
    encode()
    (shard,) = (tmp_path / "cache/tensors").iterdir()
    content = shard.read_bytes()
    shard.write_bytes(content[:-1000])
    _, new, said = encode()
    assert new == 6
    assert "encoded, lost from the cache: 6" in said
    assert f"damaged, and encoded anew where needed: 1 ('{shard.name}')" in said
    assert shard.read_bytes() == content


def test_the_cache_does_not_depend_on_where_the_model_lies(encode, base, model, tmp_path):
    encode()
    moved = BaseModel.load(str(shutil.copytree(model, tmp_path / "moved")))
    assert moved.vae_fingerprint == base.vae_fingerprint
    assert moved.text_identity == base.text_identity


def test_pictures_that_cannot_be_used_are_all_named_and_the_others_kept(encode, folder, tmp_path):
    (folder / "1.png").write_text("no picture")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:100])
    with pytest.raises(DataError, match=r"(?s)2 of 6 pictures cannot be used.*1\.png.*4\.png"):
        encode()
    assert len(Store(tmp_path / "cache/tensors")) == 4


def test_half_precision_that_overflows_is_named(encode, base, monkeypatch):
    monkeypatch.setattr(base, "scaling_factor", 1e6)
    with pytest.raises(NumericsError, match=r"0\.png: .* not finite numbers in fp16"):
        encode(latent_cache_dtype="fp16")


def test_prompts_are_encoded_once_for_all_runs(base, tmp_path):
    store = Store(tmp_path)
    assert Contexts(base, store).cache(["a star", "", "a star"]) == 2
    assert Contexts(base, store).cache(["a star", "a heart"]) == 1
    rows = []
    hook = base.text_encoder.model.register_forward_hook(lambda *call: rows.append(1))
    found = Contexts(base, Store(tmp_path)).stack(["a heart", ""])
    hook.remove()
    assert not rows
    expected = Condition.join(base.encode_prompts(["a heart", ""]))
    torch.testing.assert_close(found.context, expected.context)


def killed_at(base, monkeypatch, limit):
    """Lets the autoencoder end the pass when it is called once too often."""
    calls, encode_images = [], base.encode_images

    def limited(pixels):
        calls.append(1)
        if len(calls) > limit:
            raise KeyboardInterrupt
        return encode_images(pixels)

    monkeypatch.setattr(base, "encode_images", limited)
    return calls


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def fourteen(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "PER_SHARD", 4)
    folder = tiny.make_pictures(tmp_path / "set", 14)
    return read_folder(folder, "stop", setting="train_data_dir")


def test_a_killed_pass_repeated_leaves_the_same_files(base, fourteen, tmp_path, monkeypatch):
    """Killed in its third shard, it keeps two."""
    config = DataConfig(resolution=(16,))
    caches.encode(tmp_path / "whole", fourteen, base, config)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(base, patch, 10)
        caches.encode(tmp_path / "killed", fourteen, base, config)
    assert len(Store(tmp_path / "killed/tensors")) == 8
    with monkeypatch.context() as patch:
        calls = killed_at(base, patch, 99)
        caches.encode(tmp_path / "killed", fourteen, base, config)
        assert len(calls) == 6
    found = files(tmp_path / "killed")
    left = [name for name in found if "/.train-" in name]
    assert {name: found[name] for name in found if name not in left} == files(tmp_path / "whole")


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_make_the_cache_of_one(base, fourteen, tmp_path, count):
    """Here they are threads with one barrier, so that they meet as processes do."""
    config = DataConfig(resolution=(16,), random_flip=True)
    caches.encode(tmp_path / "one", fourteen, base, config)
    barrier, found = threading.Barrier(count), {}

    def run(rank):
        workers = Workers(count, rank, lambda value: ".train-agreed", lambda: barrier.wait(60))
        latents = caches.encode(tmp_path / "shared", fourteen, base, config, workers=workers)
        found[rank] = caches.means(latents)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == count
    assert all(torch.equal(found[0], means) for means in found.values())
    assert files(tmp_path / "shared") == files(tmp_path / "one")


def test_what_one_process_finds_all_of_them_raise(base, fourteen, tmp_path):
    """Of three, the second and the third meet a picture each that cannot be used."""
    for name in ("5.png", "8.png"):  # sorted as 10, 11, 12, 13, 1 to 9: the second and third shard
        (tmp_path / "set" / name).write_text("no picture")
    barrier, raised = threading.Barrier(3), {}

    def run(rank):
        workers = Workers(3, rank, lambda value: ".train-agreed", lambda: barrier.wait(60))
        try:
            caches.encode(
                tmp_path / "cache", fourteen, base, DataConfig(resolution=(16,)), workers=workers
            )
        except DataError as error:
            raised[rank] = str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(raised) == {0, 1, 2}
    assert len(set(raised.values())) == 1
    headline, *faults = raised[0].splitlines()
    assert headline == "2 of 14 pictures cannot be used; mend or remove them:"
    assert [fault.split(":")[0].strip() for fault in faults] == ["5.png", "8.png"]


def test_all_end_at_once_where_one_process_meets_the_only_fault(zygote, model, tmp_path):
    """The first process has encoded its shard and waits; no launcher is there to end it."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(caching.PER_SHARD + 1):
        Image.new("RGB", (16, 16), (number % 256, 0, 0)).save(folder / f"{number:03d}.png")
    Image.new("RGB", (100, 16)).save(folder / "999.png")
    mask = Image.new("L", (100, 16))
    mask.paste(255, (98, 0, 100, 16))  # where no centre reaches
    mask.save(folder / "999.mask.png")
    changes = {"use_mask_files": True, "missing_caption": "empty"}
    ended = zygote.run(runs.settings(model, folder, tmp_path, **changes), tmp_path, world=2)
    assert ended.codes == [3, 3], ended.said
    status = runs.status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert "999.png: all that the crop shows is black in its mask" in status["reason"]
    assert status["resume_command"].endswith("config.toml")  # there is nothing to resume from
    assert ended.said.count("weighted evenly, since they have no mask") == 1


def test_a_process_that_ended_is_not_waited_for_for_ever(base, fourteen, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "STALLED", 0.5)
    config = DataConfig(resolution=(16,))
    with pytest.raises(Exception, match="no process has written to"):
        caches.encode(tmp_path / "cache", fourteen, base, config, workers=Workers(2, 0))


def tool_flags(model, pictures, output, **changes):
    changes = {"train_batch_size": None, "max_train_steps": None, **changes}
    flags = runs.settings(model, pictures, output / "runs", **changes)
    return ["-o", str(output / "cache"), *flags]


@pytest.mark.slow
def test_the_tool_survives_kills_at_any_moment(model, tmp_path):
    """Processes are killed after more and more seconds; the last one is not."""
    folder = tiny.make_pictures(tmp_path / "set", 600, size=(40, 32))
    flags = tool_flags(model, folder, tmp_path, resolution=32)
    whole = runs.run(TOOL, ["-o", str(tmp_path / "whole"), *flags[2:]])
    assert whole.returncode == 0, whole.stderr
    for seconds in (4, 5, 5.5, 6, 6.5, 7, 8):
        with runs.start(TOOL, flags) as process:
            time.sleep(seconds)
            os.killpg(process.pid, signal.SIGKILL)
    result = runs.run(TOOL, flags)
    assert result.returncode == 0, result.stderr
    found = files(tmp_path / "cache")
    kept = {name: content for name, content in found.items() if "/." not in name}
    assert kept == files(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_of_the_tool_make_the_cache_of_one(model, pictures, tmp_path):
    for name, launcher in (("one", TOOL), ("two", TORCHRUN)):
        flags = tool_flags(model, pictures, tmp_path / name, validation_data_dir=pictures)
        result = runs.run(launcher, [*flags, "--verify", "3"])
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("0 of 6 pictures were in the cache") == 1
        assert "verified 3 pictures, 3 entries: they differ by at most 0.0e+00" in result.stdout
    assert files(tmp_path / "one/cache") == files(tmp_path / "two/cache")


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_cache_is_all_that_training_needs(run, model, pictures, tmp_path, capsys):
    """Moved, and without the pictures: the same weights."""
    own = shutil.copytree(pictures, tmp_path / "own")
    shaping = {"random_flip": True, "resolution": 24, "latent_cache_dtype": "fp16"}
    flags = tool_flags(model, own, tmp_path, validation_data_dir=own, **shaping)
    assert run(NAME, *flags).returncode == 0
    runs.forget_accelerate()
    shared = {"latent_cache_dir": tmp_path / "cache", "validation_data_dir": own}
    flags = runs.settings(model, own, tmp_path / "with", **shaping, **shared)
    assert runs.train_here(flags) == 0
    shutil.rmtree(own)
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    source = {"resolution": None, "cached_data_dir": tmp_path / "moved"}
    flags = runs.settings(model, None, tmp_path / "without", **source)
    capsys.readouterr()
    assert runs.train_here(flags) == 0
    out, err = capsys.readouterr()
    assert f"\nheld-out latents: 6 pictures, from {tmp_path / 'moved'}\n" in out
    assert f"\nlatents: 6 pictures, from {tmp_path / 'moved'}\nsizes: 1, of 6 pictures\n" in out
    assert "0shard" not in err
    first, second = (tmp_path / name / "run" for name in ("with", "without"))
    assert (first / "run.pt").read_bytes() == (second / "run.pt").read_bytes()
    assert runs.metrics(first)[-1]["heldout_loss"] == runs.metrics(second)[-1]["heldout_loss"]


@pytest.mark.usefixtures("fresh_accelerate")
def test_what_contradicts_a_cache_is_refused(run, model, pictures, tmp_path, capsys):
    assert run(NAME, *tool_flags(model, pictures, tmp_path)).returncode == 0
    cache = {"cached_data_dir": tmp_path / "cache"}

    def refused(code, **changes):
        flags = runs.settings(model, None, tmp_path / "out", **cache | changes)
        capsys.readouterr()
        assert runs.train_here(flags) == code
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return capsys.readouterr().err

    said = refused(2, resolution=32)
    assert re.search(r"resolution is \(32\), but .*cache was made with \(16\): leave", said)
    other = tiny.make_model(tmp_path / "other", seed=1)
    said = refused(3, pretrained_model_name_or_path=other)
    assert "not those of this base model's autoencoder" in said
    (shard,) = (tmp_path / "cache/tensors").glob("moments-*")
    shard.unlink()
    assert "lacks 6 of 6 entries that its index names" in refused(3)
    assert "is no index of cached pictures" in refused(3, cached_data_dir=tmp_path)
    gone = tmp_path / "gone"
    assert f"cached_data_dir '{gone}' is no folder here, and as a repo" in refused(
        2, cached_data_dir=gone
    )


@pytest.mark.parametrize("content", [b"", b"no arrow file"])
def test_a_file_that_is_no_index_is_refused(tmp_path, content):
    (tmp_path / "train.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.arrow is no index of cached pictures"):
        Index.open(tmp_path / "train.arrow")


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_changed_entry_is_found_by_verifying(run, encode, base, folder, tmp_path):
    latents, *_ = encode()
    (shard,) = (tmp_path / "cache/tensors").iterdir()
    content = bytearray(shard.read_bytes())
    values = latents.moments(3)[0].numpy().tobytes()
    place = content.index(values)
    content[place : place + 4] = b"\0\0\0\x41"  # 8.0
    shard.write_bytes(content)
    flags = tool_flags(base.name, folder, tmp_path)
    result = run(NAME, *flags, "--verify", 6)
    assert result.returncode == 3
    assert "holds something else for 3.png" in result.stderr


@pytest.mark.usefixtures("fresh_accelerate")
def test_runs_that_share_a_cache_are_equal(model, pictures, tmp_path, capsys):
    names = ("own", "first", "second")
    for name in names:
        shared = None if name == "own" else tmp_path / "cache"
        flags = runs.settings(
            model, pictures, tmp_path / name, latent_cache_dir=shared, latent_sampling="random"
        )
        assert runs.train_here(flags) == 0
    assert "6 of 6 pictures were in the cache" in capsys.readouterr().out
    assert len({(tmp_path / name / "run/run.pt").read_bytes() for name in names}) == 1


def test_a_broken_picture_of_another_process_ends_all_of_them(base, tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "PER_SHARD", 2)
    folder = tiny.make_pictures(tmp_path / "set", 4)
    (folder / "3.png").write_bytes(b"no picture")
    dataset = read_folder(folder, "stop", setting="train_data_dir")
    config = DataConfig(resolution=(16,))
    barrier, found = threading.Barrier(2), []

    def run(rank):
        workers = Workers(2, rank, lambda value: ".train-agreed", lambda: barrier.wait(60))
        with pytest.raises(DataError, match=r"1 of 4 pictures cannot be used.*\n  3\.png"):
            caches.encode(tmp_path / "cache", dataset, base, config, workers=workers)
        found.append(rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [0, 1]


def test_what_killed_passes_left_long_ago_is_removed(encode, tmp_path):
    encode()
    left = [tmp_path / "cache/pictures" / name for name in (".train-old", ".train-new")]
    for path in left:
        path.mkdir()
    os.utime(left[0], (0, 0))
    encode()
    assert [path.exists() for path in left] == [False, True]


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("program", ["training", "tool"])
def test_a_cache_folder_that_cannot_be_written_is_refused_before_pictures(
    run, model, tmp_path, capsys, program
):
    """Nobody should wait for an hour of encoding: not even the pictures are looked at."""
    (tmp_path / "file").write_text("")
    flags = runs.settings(model, tmp_path / "no pictures", tmp_path)
    cache = str(tmp_path / "file")
    tool = program == "tool"
    flags += ["-o", cache] if tool else ["--latent_cache_dir", cache]
    if tool:
        result = run(NAME, *flags)
        code, said = result.returncode, result.stderr
    else:
        code, said = runs.train_here(flags), capsys.readouterr().err
    assert code == 5
    assert f"error: latent_cache_dir '{cache}' cannot be written: File exists" in said
    assert "Traceback" not in said


def terminate(folder, _rank):
    """Send a process of the zygote a signal once it has encoded some of the pictures."""

    def wait():
        runs.wait_for(folder / "cache/tensors/*.arrow")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """As many pictures as take their time."""
    return tiny.make_pictures(tmp_path_factory.mktemp("many") / "set", 3000, size=(40, 32))


def test_a_run_that_is_still_encoding_leaves_at_once_when_told(zygote, model, many, tmp_path):
    """It has nothing to save, and hours of encoding would be waited for."""
    flags = runs.settings(model, many, tmp_path, resolution=32, latent_cache_dir=tmp_path / "cache")
    ended = zygote.run(flags, tmp_path, before=terminate)
    assert_left(ended.codes[0], ended.said, tmp_path / "cache")
    status = runs.status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("interrupted", 75)
    assert status["resume_command"].endswith("config.toml")


def test_the_tool_leaves_at_once_when_told(model, many, tmp_path):
    flags = runs.settings(model, many, tmp_path, resolution=32)
    cache = tmp_path / "cache"
    with runs.start(TOOL, [*flags, "-o", str(cache)]) as process:
        runs.wait_for(cache / "tensors/*.arrow")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert_left(process.returncode, out + err, cache)


def assert_left(code, said, cache):
    """It was interrupted, and kept what it had."""
    assert code == 75, said
    assert "Traceback" not in said
    assert "what was encoded is kept\n" in said
    assert len(Store(cache / "tensors")) in range(1, 3000)
