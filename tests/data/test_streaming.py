"""A stream gives every picture once an epoch, goes on anywhere, and holds next to nothing."""

import io
import json
import os
from dataclasses import asdict, dataclass
from itertools import count, islice, product
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import List, Value
from PIL import Image

from hn import limits
from hn.config import Config, DataConfig, ModelConfig
from hn.data.batches import Layout
from hn.data.pictures.decoding import Example, upright_size
from hn.data.pictures.framing import Framing
from hn.data.streaming.batches import StreamedBatches
from hn.data.streaming.chunks import Decoder, plan
from hn.data.streaming.prefetch import ahead
from hn.data.streaming.samples import Samples
from hn.data.streaming.stream import Position, Stream
from hn.data.words.prompts import Prompts
from hn.diffusion.base_model import BaseModel
from hn.errors import DataError, OptionError
from tests import streamed, tiny

WRITERS = {
    "parquet": streamed.write_parquet,
    "arrow": streamed.write_arrow,
    "webdataset": streamed.write_webdataset,
}


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def base(model):
    return BaseModel.load(str(model))


def config(folder, **changes) -> DataConfig:
    return DataConfig(**{"dataset_name": folder, "streaming": True, "resolution": (16,), **changes})


def epochs(stream, length, number):
    """The captions of so many epochs, in order, as lists; every chunk is checked on the way."""
    found = [[] for _ in range(number)]
    for chunk in stream.chunks(Position(), length):
        if chunk.start.epoch == number:
            return found
        assert len(chunk.examples) <= length
        found[chunk.start.epoch] += [example.caption for example in chunk.examples]
    raise AssertionError


def batches(base, data, *, batch_size=2, accumulation=1, seed=0, framing=None):
    """The batches of a run over the stream that the settings name."""
    layout = Layout(batch_size=batch_size, accumulation=accumulation)
    framing = framing or Framing(size=data.size, resize_mode=data.resize_mode)
    samples = Samples(framing, data, seed, downscaling=base.downscaling, inpainting=base.inpainting)
    prompts = Prompts([], ["[filewords]"], "x", data, seed)
    decoder = Decoder(Stream.of(data, seed), samples, prompts, layout, seed)
    return StreamedBatches(decoder, base, data, seed, "")


def drawn(stream, steps, first=0):
    return [batch for step in range(first, first + steps) for batch in stream.at(step)]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_row_comes_once_an_epoch_whatever_the_files(tmp_path, kind):
    folder = WRITERS[kind](tmp_path / "set", streamed.rows(31), 5)
    columns = {"image_column": "png", "caption_column": "txt"} if kind == "webdataset" else {}
    stream = Stream.of(config(folder, **columns), 0)
    first, second = epochs(stream, 8, 2)
    assert sorted(first) == sorted(second) == sorted(f"number {i}" for i in range(31))
    assert first != second  # the shards come in another order
    assert epochs(Stream.of(config(folder, **columns), 1), 8, 1) != [first]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stream_goes_on_from_the_beginning_of_any_chunk(tmp_path, kind, world_size):
    folder = WRITERS[kind](tmp_path / "set", streamed.rows(31), 5)
    columns = {"image_column": "png", "caption_column": "txt"} if kind == "webdataset" else {}
    stream = Stream.of(config(folder, **columns), 0, rank=world_size - 1, world_size=world_size)
    chunks = list(islice(stream.chunks(Position(), 4), 18))
    assert {chunk.start.epoch for chunk in chunks} >= {0, 1}
    for number, chunk in enumerate(chunks):
        start = Position(**json.loads(json.dumps(asdict(chunk.start))))
        assert list(islice(stream.chunks(start, 4), 18 - number)) == chunks[number:]


@pytest.mark.parametrize("shards", [4, 3])
def test_two_processes_see_different_rows_and_all_of_them(tmp_path, shards):
    """4 shards are dealt out whole, 3 row by row."""
    folder = streamed.write_parquet(tmp_path / "set", streamed.rows(23), shards)
    parts = [Stream.of(config(folder), 0, rank=rank, world_size=2) for rank in (0, 1)]
    for of_one, of_other in zip(*(epochs(part, 5, 3) for part in parts), strict=True):
        assert sorted(of_one + of_other) == sorted(f"number {i}" for i in range(23))
    assert parts[0].digest == parts[1].digest


def test_a_row_is_named_by_its_true_place(tmp_path):
    """With 2 processes and 3 shards each reads every other row; number 16 is row 5 of shard 1."""
    folder = streamed.write_parquet(tmp_path / "set", streamed.rows(23), 3)
    names = {}
    for rank in (0, 1):
        stream = Stream.of(config(folder), 0, rank=rank, world_size=2)
        chunk = next(stream.chunks(Position(), 100))
        names |= {example.caption: example.name for example in chunk.examples}
    assert names["number 16"] == "row 5 of shard 1"
    assert names["number 0"] == "row 0 of shard 0"
    assert len(set(names.values())) == 23


def test_a_plan_has_every_picture_once_in_batches_of_one_size():
    sizes = [(16, 16), (24, 16)] * 5 + [(16, 24)]
    batches = plan(sizes, 2, 0, 0, 0, 0)
    assert sorted(place for batch in batches for place in batch.own) == list(range(11))
    for batch in batches:
        assert {sizes[place] for place in (*batch.own, *batch.spares)} == {batch.size}
        assert set(batch.spares) == {i for i in range(11) if sizes[i] == batch.size}
    assert sorted(len(batch.own) for batch in batches) == [1, 1, 1, 2, 2, 2, 2]
    assert plan(sizes, 2, 0, 0, 0, 0) == batches
    others = [plan(sizes, 2, *key) for key in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))]
    assert batches not in [*others, plan(sizes, 2, 0, 0, 0, 1)]


@dataclass(frozen=True, kw_only=True)
class ByShape(Framing):
    """Two sizes: tall pictures stay tall."""

    def frame(self, picture, place=(0.5, 0.5)):
        size = (16, 24) if picture[1] > picture[0] else (16, 16)
        return Framing(size=size).frame(picture, place)


def test_a_batch_is_of_one_size_and_filled_with_others_of_that_size(base, tmp_path, capsys):
    wide, tall = streamed.rows(7), streamed.rows(3, (16, 28))
    for row in tall:
        row["text"] = f"tall {row['text']}"
    folder = streamed.write_parquet(tmp_path / "set", wide + tall, 2)
    stream = batches(base, config(folder), batch_size=2, framing=ByShape(size=(16, 16)))
    shapes, prompts = [], []
    for batch in drawn(stream, 6):  # 4 of wide ones, 2 of tall ones
        shapes.append(tuple(batch.latents.shape[2:]))
        prompts += batch.prompts
        assert len({prompt.startswith("tall") for prompt in batch.prompts}) == 1
        assert (batch.latents.shape[2] == 12) == batch.prompts[0].startswith("tall")
    assert sorted(shapes) == [(8, 8)] * 4 + [(12, 8)] * 2
    assert set(prompts) == {row["text"] for row in wide + tall}
    counts = {"read": 10, "skipped": 0, "repeated": 2, "enlarged": 0}
    assert stream.counts() == {f"pictures_{name}": number for name, number in counts.items()}


def test_batches_go_on_after_any_of_them_to_the_same_bits(base, tmp_path):
    """Within a chunk of 6, at its end, and where an epoch of 13 ends."""
    folder = streamed.write_parquet(tmp_path / "set", streamed.scenes(13), 3)
    changes = {
        "shuffle_buffer": 7,  # of which 6 make whole batches
        "random_crop": True,
        "random_flip": True,
        "latent_sampling": "random",
        "shuffle_tags": True,
        "caption_dropout": 0.2,
    }
    whole = batches(base, config(folder, **changes), accumulation=2)
    expected, states = [], []
    for step in range(8):
        expected.append(list(whole.at(step)))
        states.append(json.loads(json.dumps(whole.state())))
    assert {state["chunk"]["epoch"] for state in states} == {0, 1, 2}
    for step, state in enumerate(states[:-1]):
        resumed = batches(base, config(folder, **changes), accumulation=2)
        resumed.restore(state)
        for batch, other in zip(resumed.at(step + 1), expected[step + 1], strict=True):
            assert torch.equal(batch.latents, other.latents)
            assert torch.equal(batch.condition.context, other.condition.context)
            assert (batch.prompts, batch.pictures) == (other.prompts, other.pictures)
        assert resumed.state() == states[step + 1]


def test_a_step_that_does_not_follow_is_our_own_mistake(base, tmp_path):
    folder = streamed.write_parquet(tmp_path / "set", streamed.rows(6), 1)
    stream = batches(base, config(folder))
    drawn(stream, 1)
    with pytest.raises(AssertionError, match="step 5 does not follow: 1"):
        drawn(stream, 1, first=5)


def test_samples_are_new_each_time_unless_that_is_not_wanted(base, tmp_path):
    """4 pictures, 2 epochs: the same latents of a picture only with once and deterministic."""
    folder = streamed.write_parquet(tmp_path / "set", streamed.scenes(4), 1)
    for sampling, crop in product(("once", "deterministic", "random"), (False, True)):
        data = config(folder, latent_sampling=sampling, random_crop=crop)
        found = {}
        for batch in drawn(batches(base, data), 4):
            for picture, latents in zip(batch.pictures, batch.latents, strict=True):
                found.setdefault(picture, []).append(latents)
        assert {len(seen) for seen in found.values()} == {2}
        equal = [torch.equal(*seen) for seen in found.values()]
        if crop:  # of 5 places each
            assert not all(equal)
        else:
            assert not any(equal) if sampling == "random" else all(equal)


def test_mirrored_samples_are_half_of_them(base, tmp_path):
    folder = streamed.write_parquet(tmp_path / "set", streamed.scenes(1), 1)
    data = config(folder, random_flip=True, latent_sampling="deterministic")
    found = [batch.latents[0] for batch in drawn(batches(base, data, batch_size=1), 40)]
    same = [torch.equal(latents, found[0]) for latents in found]
    assert 10 < sum(same) < 30
    assert len({latents.numpy().tobytes() for latents in found}) == 2


def test_alpha_weights_are_those_of_each_sample(base, tmp_path):
    """The left part counts, mirrored the right one; what shows nothing is skipped."""
    made = []
    for number in range(20):
        picture = Image.new("RGB", (16, 16), (number, 0, 0))
        picture.putalpha(tiny.left_part((16, 16)))
        made.append({"image": _saved(picture), "text": f"number {number}"})
    hidden = Image.new("RGBA", (16, 40))
    hidden.putpixel((0, 0), (9, 9, 9, 255))
    made.append({"image": _saved(hidden), "text": "hidden"})
    folder = streamed.write_parquet(tmp_path / "set", made, 1)
    stream = batches(base, config(folder, use_alpha_weights=True, random_flip=True), batch_size=1)
    halves = []
    for batch in drawn(stream, 20):
        assert batch.prompts != ["hidden"]
        assert batch.loss_weights.shape == (1, 1, 8, 8)
        assert batch.loss_weights.mean() == pytest.approx(1)
        halves.append(bool(batch.loss_weights[..., :4].sum() > batch.loss_weights[..., 4:].sum()))
    assert set(halves) == {True, False}
    drawn(stream, 1, first=20)
    assert stream.counts()["pictures_skipped"] == 1


def test_rows_that_cannot_be_used_are_skipped_counted_and_named(base, tmp_path, capsys):
    made = streamed.rows(30)
    made[0]["image"] = None
    made[3]["image"] = b"<html>"
    made[8]["image"] = made[8]["image"][:-30]  # the header is whole
    made[13]["text"] = None
    made[18]["text"] = "a {b"
    folder = streamed.write_parquet(tmp_path / "set", made, 5)
    stream = batches(base, config(folder, wildcards=True, shuffle_buffer=10))
    prompts, state = [], None
    for step in range(26):  # of which 13 make an epoch
        prompts += [prompt for batch in stream.at(step) for prompt in batch.prompts]
        state = state or (stream.state() if stream.counts()["pictures_skipped"] >= 3 else None)
    bad = {0, 3, 8, 13, 18}
    assert set(prompts[:26]) == {f"number {i}" for i in range(30) if i not in bad}
    counts = {"read": 60, "skipped": 10, "repeated": 2, "enlarged": 0}
    assert stream.counts() == {f"pictures_{name}": number for name, number in counts.items()}
    shown = capsys.readouterr().out
    assert shown.count("skipped: row") == 5
    for words in ("cannot be read as PNG", "no caption", "a brace is not closed"):
        assert words in shown
    assert "row 0 of shard 0: it has no picture" in shown

    resumed = batches(base, config(folder, wildcards=True, shuffle_buffer=10))
    resumed.restore(state)
    again = drawn(resumed, 26 - state["next_step"], first=state["next_step"])
    assert [prompt for batch in again for prompt in batch.prompts] == prompts[
        2 * state["next_step"] :
    ]
    assert resumed.counts() == stream.counts()


@pytest.mark.parametrize("spoil", [lambda content: b"<html>", lambda content: content[:-30]])
@pytest.mark.parametrize(("rows", "buffer"), [(60, 20), (4, 4), (4, 1), (60, 1000)])
def test_a_stream_of_bad_rows_ends(base, tmp_path, spoil, rows, buffer):
    made = [{**row, "image": spoil(row["image"])} for row in streamed.rows(rows)]
    folder = streamed.write_parquet(tmp_path / "set", made, 2)
    with pytest.raises(DataError, match=r"11 of \d+ streamed rows cannot be used.*\n.*row \d+ of"):
        drawn(batches(base, config(folder, shuffle_buffer=buffer)), 1)


def test_lists_lines_and_empty_captions(base, tmp_path):
    made = streamed.rows(3)
    for row, captions in zip(made, (["red\ncrimson", "scarlet"], [], ["blue"]), strict=True):
        row["text"] = captions
    folder = streamed.write_parquet(tmp_path / "set", made, 1, List(Value("string")))
    data = config(folder, caption_lines=True, missing_caption="empty")
    found = {prompt for batch in drawn(batches(base, data), 40) for prompt in batch.prompts}
    assert found == {"red", "crimson", "scarlet", "", "blue"}
    assert Stream.of(data, 0).first_captions == [("red", "crimson", "scarlet"), ("",), ("blue",)]


def test_wrong_columns_are_refused_with_those_there_are(tmp_path):
    folder = streamed.write_webdataset(tmp_path / "set", streamed.rows(4), 1)
    with pytest.raises(DataError, match=r"image_column 'image'.*'png', 'txt', 'json', '__key__'"):
        Stream.of(config(folder), 0)
    wrong = {"image_column": "png", "caption_column": "json"}
    with pytest.raises(DataError, match=r"'json' of .* does not hold texts.* {'size': Value"):
        Stream.of(config(folder, **wrong), 0)
    with pytest.raises(DataError, match=r"image_column 'txt' of .* does not hold pictures.*'png'"):
        Stream.of(config(folder, image_column="txt", caption_column="txt"), 0)


def test_what_is_no_dataset_or_holds_no_row_is_refused(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"dataset_name '.*none' cannot be loaded"):
        Stream.of(config(str(tmp_path / "none")), 0)
    with pytest.raises(DataError, match="holds no row"):
        Stream.of(config(streamed.write_parquet(tmp_path / "empty", [], 1)), 0)
    one = config(streamed.write_parquet(tmp_path / "one", streamed.rows(1), 1))
    with pytest.raises(DataError, match="has no row for each process"):
        list(islice(Stream.of(one, 0, rank=1, world_size=2).chunks(Position(), 2), 9))


def test_a_damaged_shard_is_named(tmp_path):
    folder = streamed.write_parquet(tmp_path / "set", streamed.rows(20), 2)
    shard = Path(folder) / "train-00001-of-00002.parquet"
    content = shard.read_bytes()
    stream = Stream.of(config(folder), 0)
    shard.write_bytes(content[:4] + bytes(len(content) // 2) + content[len(content) // 2 + 4 :])
    with pytest.raises(DataError, match="cannot be read on at row 0 of shard 1: Could not open"):
        epochs(stream, 4, 1)


def test_the_size_of_a_picture_is_read_off_its_header():
    for kind, turned in product(("PNG", "JPEG"), (False, True)):
        exif = Image.Exif()
        if turned:
            exif[0x112] = 6
        file = io.BytesIO()
        Image.new("RGB", (20, 10)).save(file, kind, exif=exif)
        source = {"path": None, "bytes": file.getvalue()}
        assert upright_size(Example("a", source, "")) == ((10, 20) if turned else (20, 10))


def test_memory_does_not_grow_with_the_stream(tmp_path):
    """60 MB of noise, in shards of 3 MB, of which 50 pictures of 20 KB are read at once."""
    noise = np.random.default_rng(0).integers(0, 256, (150, 82, 82, 3), dtype=np.uint8)
    made = [{"image": _saved(Image.fromarray(it), 0), "text": "noise"} for it in noise]
    folder = Path(streamed.write_parquet(tmp_path / "set", made, 1))
    (whole,) = folder.iterdir()
    for shard in range(20):
        (folder / f"more-{shard}.parquet").write_bytes(whole.read_bytes())
    whole.unlink()
    stream, resident = Stream.of(config(str(folder)), 0), []
    for chunk in islice(stream.chunks(Position(), 50), 120):
        assert all(len(example.source["bytes"]) > 20_000 for example in chunk.examples)
        resident.append(_resident_mib())
    assert max(resident[10:]) - resident[9] < 12


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"dataset_name": None, "train_data_dir": "a"}, "give dataset_name instead of train_data"),
        ({"latent_cache_dir": "a"}, "give one of the two"),
        ({"crops_per_image": 2}, "crops_per_image 2 is for pictures that are encoded once"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1; found 0"),
        ({"streaming": False, "shuffle_buffer": 9}, "shuffle_buffer 9 is for streaming"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, fault):
    model = ModelConfig(pretrained_model_name_or_path="m")
    limits.check(Config(model=model, data=config("a", shuffle_buffer=9)))
    with pytest.raises(OptionError, match=fault):
        limits.check(Config(model=model, data=config("a", **changes)))


def test_what_is_made_ahead_comes_in_order_and_ends_with_it():
    made, closed = [], []

    def items(end=None):
        try:
            for number in count():
                if number == end:
                    raise DataError("no more")
                made.append(number)
                yield number
        finally:
            closed.append(True)

    numbers = ahead(items(), 3)
    assert list(islice(numbers, 5)) == [0, 1, 2, 3, 4]
    numbers.close()
    assert len(made) <= 8
    assert closed == [True]
    failing = ahead(items(2), 3)
    assert [next(failing), next(failing)] == [0, 1]
    with pytest.raises(DataError, match="no more"):
        next(failing)


def _saved(picture, compress_level=6):
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=compress_level)
    return file.getvalue()


def _resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
