"""Runs that train from a stream: stopped and resumed equals not stopped, to the bit."""

import json
import shutil

import pytest
from PIL import Image

from hn.training.watching import guard
from hn.training.watching.readings import Reading
from tests import faults, runs, streamed

CHANGES = {
    "train_data_dir": None,
    "streaming": True,
    "shuffle_buffer": 4,
    "max_train_steps": 9,
    "checkpointing_steps": 1,
    "random_crop": True,
    "random_flip": True,
    "shuffle_tags": True,
    "caption_dropout": 0.2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """11 pictures in 3 shards; the header of one says nothing of its being cut short."""
    made = streamed.scenes(11)
    made[5]["image"] = made[5]["image"][:-40]
    return streamed.write_parquet(tmp_path_factory.mktemp("streamed") / "set", made, 3)


def flags(model, folder, output, **changes):
    return runs.settings(model, None, output, dataset_name=folder, **{**CHANGES, **changes})


def streams(checkpoint):
    return json.loads((checkpoint / "state.json").read_text())["streams"]


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"gradient_accumulation_steps": 2, "latent_sampling": "random"},
        {"prompt_syntax": "webui", "latent_sampling": "deterministic", "train_batch_size": 3},
    ],
    ids=["plain", "accumulated", "webui"],
)
def test_a_run_resumed_anywhere_equals_one_that_was_not_stopped(
    model, folder, tmp_path, variant, capsys
):
    assert runs.train_here(flags(model, folder, tmp_path / "whole", **variant)) == 0
    whole = tmp_path / "whole/run"
    checkpoints = sorted((whole / "checkpoints").glob("step-*"))
    places = [streams(path)[0] for path in checkpoints]
    assert len({place["chunk"]["epoch"] for place in places}) > 1
    assert {place["batches"] for place in places} >= {1, 2} or variant
    for step in (1, 6, 8):  # within a chunk, at the end of an epoch, within the next
        stopped = tmp_path / f"from-{step}/run"
        for path in checkpoints[:step]:
            shutil.copytree(path, stopped / "checkpoints" / path.name)
        shutil.copy(whole / "metrics.jsonl", stopped)
        again = flags(model, folder, tmp_path / f"from-{step}", **variant)
        assert runs.train_here([*again, "--resume_from_checkpoint", "latest"]) == 0
        for name in ("run.pt", "checkpoints/step-00000009/resume/optimizer.safetensors"):
            assert (stopped / name).read_bytes() == (whole / name).read_bytes()
        assert runs.losses(stopped) == runs.losses(whole)
        assert streams(stopped / "checkpoints/step-00000009") == [places[-1]]


@pytest.mark.usefixtures("fresh_accelerate")
def test_what_is_skipped_is_counted_in_the_metrics_and_at_the_end(
    model, folder, pictures, tmp_path, capsys
):
    """Previews and the held-out loss are there as ever."""
    changes = {
        "validation_prompt": ["a star"],
        "validation_inference_steps": 2,
        "validation_data_dir": pictures,
        "max_train_steps": 12,
    }
    assert runs.train_here(flags(model, folder, tmp_path, **changes)) == 0
    rows = [row for row in runs.metrics(tmp_path / "run") if "loss" in row]
    assert rows[-1]["pictures_read"] == 22
    assert rows[-1]["pictures_skipped"] == 2
    assert [row["pictures_read"] for row in rows] == sorted(row["pictures_read"] for row in rows)
    printed = capsys.readouterr().out
    assert "streaming " in printed
    assert "3 shards" in printed
    assert printed.count("skipped: row 1 of shard 2: cannot be read") >= 2  # what is ahead, too
    assert "pictures read 22, pictures skipped 2, pictures repeated " in printed
    assert any("heldout_loss" in row for row in runs.metrics(tmp_path / "run") if row["step"] == 12)
    with Image.open(tmp_path / "run/previews/step-00000012.png") as picture:
        picture.load()
    last = (tmp_path / "run/hypernetwork_loss.csv").read_text().splitlines()[-1]
    assert last.startswith("12,0,11,")


def test_two_processes_resume_where_each_of_them_was(zygote, model, folder, tmp_path):
    """3 shards: both read all of them, every other row each."""
    changes = {"max_train_steps": 6, "checkpointing_steps": 3, "expect_world_size": 2}
    ended = zygote.run(flags(model, folder, tmp_path, **changes), tmp_path, world=2)
    assert ended.codes == [0, 0], ended.said
    run = tmp_path / "run"
    last = run / "checkpoints/step-00000006"
    assert len(streams(last)) == 2
    assert "terminate called" not in ended.said
    kept = {name: (run / name).read_bytes() for name in ("run.pt", "metrics.jsonl")}
    places, losses = streams(last), runs.losses(run)
    shutil.rmtree(last)
    (run / "run.pt").unlink()
    again = flags(model, folder, tmp_path, **changes, resume_from_checkpoint="latest")
    ended = zygote.run(again, tmp_path, world=2)
    assert ended.codes == [0, 0], ended.said
    assert (run / "run.pt").read_bytes() == kept["run.pt"]
    assert runs.losses(run) == losses
    assert streams(last) == places


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"shuffle_buffer": 6}, "shuffle_buffer: 4 then, 6 now"),
        ({"dataset_split": "train[:4]"}, "cannot be loaded"),
    ],
)
def test_a_checkpoint_of_another_stream_is_refused(model, folder, tmp_path, capsys, changes, named):
    assert runs.train_here(flags(model, folder, tmp_path, max_train_steps=1)) == 0
    again = flags(model, folder, tmp_path, **changes, resume_from_checkpoint="latest")
    assert runs.train_here(again) in (2, 3)
    assert named in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_accelerate")
def test_another_number_of_processes_or_dataset_is_refused(model, folder, tmp_path, capsys):
    assert runs.train_here(flags(model, folder, tmp_path, max_train_steps=1)) == 0
    state = tmp_path / "run/checkpoints/step-00000001/state.json"
    assert json.loads(state.read_text())["fingerprint"]["processes"] == 1
    other = streamed.write_parquet(tmp_path / "other", streamed.scenes(11), 2)
    again = flags(model, other, tmp_path, resume_from_checkpoint="latest")
    assert runs.train_here(again) == 2
    assert "pictures: " in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_stream_goes_back_with_the_run(model, folder, tmp_path, monkeypatch):
    """What is found late leads back to a step before; then the stream is where it was."""

    class Late(Reading):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.is_here = False

    faults.inject(lambda step: "loss" if step == 5 else None, monkeypatch.setattr)
    changes = {"checkpointing_steps": 4}
    assert runs.train_here(flags(model, folder, tmp_path / "prompt", **changes)) == 0
    monkeypatch.setattr(guard, "Reading", Late)
    assert runs.train_here(flags(model, folder, tmp_path / "late", **changes)) == 0
    prompt, late = tmp_path / "prompt/run", tmp_path / "late/run"
    assert (prompt / "run.pt").read_bytes() == (late / "run.pt").read_bytes()
    last = "checkpoints/step-00000009"
    assert streams(prompt / last) == streams(late / last)
    health = [
        json.loads((path / last / "state.json").read_text())["health"] for path in (prompt, late)
    ]
    assert [each["returns"] for each in health] == [0, 1]
