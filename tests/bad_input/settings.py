"""Rows 1 to 11: settings, processes, versions, folders."""

import shutil
from collections import namedtuple
from pathlib import Path

import PIL
import torch

from hn import launch
from tests.bad_input.row import Row, Scene, assert_stopped, counted, stops

Usage = namedtuple("Usage", "total used free")


def unknown(scene: Scene) -> None:
    file = scene.path / "mine.toml"
    file.write_text("[training]\nsead = 1\n")
    said = scene.run(config=file)
    assert_stopped(said, 2, ["mine.toml: training: unknown setting 'sead'", "did you mean 'seed'"])
    assert_stopped(scene.run(learning_rat=1), 2, ["learning_rat", "--learning_rate"])


def out_of_range(scene: Scene) -> None:
    wrong = {"max_train_steps": 0, "train_batch_size": 0, "gradient_accumulation_steps": -1}
    words = [f"{name} must be at least 1; found {value}" for name, value in wrong.items()]
    assert_stopped(scene.run(**wrong), 2, words)
    for rate in ("nan", "inf", "-1", "0"):
        said = scene.run(learning_rate=rate)
        assert_stopped(said, 2, [f"learning_rate '{rate}'", "5e-5:150, 2e-5:500, 1e-5"])
    together = scene.run(learning_rate="nan", clip_grad_value="x", optimizer="AdamWW", dims=[999])
    words = ["things are wrong", "learning_rate 'nan'", "dims [999]", "Leave [999] out"]
    assert_stopped(together, 2, words)


def another_global_batch(scene: Scene) -> None:
    scene.trained()
    said = scene.run(resume_from_checkpoint="latest", train_batch_size=3, max_train_steps=6)
    assert_stopped(said, 2, ["global_batch: 2 then, 3 now", "that is train_batch_size 2 with"])


def old_libraries(scene: Scene) -> None:
    with scene.monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.9.1")
        assert_stopped(scene.run(), 2, ["torch 2.9.1 is too old", "pip install 'torch>=2.10'"])
    with scene.monkeypatch.context() as patch:
        patch.setattr(PIL, "__version__", "12.2.0")
        assert_stopped(scene.run(), 2, ["pillow 12.2.0 is too old", "pip install 'pillow>=12.3'"])


def a_run_is_there(scene: Scene) -> None:
    folder = scene.trained()
    before = (folder / "run.pt").read_bytes()
    said = scene.run()
    assert_stopped(said, 2, [f"{folder} holds a run already", "--resume_from_checkpoint latest"])
    assert (folder / "run.pt").read_bytes() == before


def cannot_be_written(scene: Scene) -> None:
    file = scene.path / "file"
    file.write_text("")
    for place in (file, Path("/proc/hn")):
        said = scene.run(output_dir=place)
        assert_stopped(said, 5, [f"output_dir '{place}", "cannot be written", "Give a folder"])


def full_disk(scene: Scene) -> None:
    scene.monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    said = scene.run()
    words = ["output_dir", "0 MiB left", "3 checkpoints of this run take 0.", "Free some space"]
    assert_stopped(said, 5, words)


def no_pictures(scene: Scene) -> None:
    for name in ("empty", "hidden"):
        (scene.path / name).mkdir()
    (scene.path / "hidden/.a.png").write_bytes(b"x")
    missing = scene.run(pictures=scene.path / "gone")
    assert_stopped(missing, 3, ["train_data_dir", "gone' is not a folder", "Give the folder"])
    for name in ("empty", "hidden"):
        said = scene.run(pictures=scene.path / name, name=name)
        assert_stopped(said, 3, [f"{name}' holds no picture", "none ends with .png"])


def held(scene: Scene) -> None:
    folder = scene.path / "out/run"
    folder.mkdir(parents=True)
    lock = launch.hold(folder)
    assert lock is not None
    words = [f"another run is at work in {folder}", "choose another --name"]
    assert_stopped(scene.run(), 2, words)
    launch.os.close(lock)
    assert scene.run(dry_run=True).code == 0


ROWS = [
    Row(1, "a misspelt option", unknown),
    Row(2, "options out of range", out_of_range),
    Row(3, "another global batch than that of the run", another_global_batch),
    counted(4, "fewer pictures than the global batch", "train", "repeated", [], count=3),
    stops(
        5,
        "fp16 on a CPU",
        2,
        ["mixed_precision fp16 needs a GPU", "use bf16 or no"],
        lambda _: {"mixed_precision": "fp16"},
    ),
    stops(
        6,
        "another number of processes than asked for",
        2,
        ["expect_world_size is 2, but 1 processes run", "launch with torchrun"],
        lambda _: {"expect_world_size": 2},
    ),
    Row(7, "libraries with known holes", old_libraries),
    Row(8, "the folder of another run", a_run_is_there),
    Row(9, "an output folder that cannot be written", cannot_be_written),
    Row(10, "a disk too small for three checkpoints", full_disk),
    Row(11, "no pictures", no_pictures),
    Row(45, "two runs in one folder", held),
]
