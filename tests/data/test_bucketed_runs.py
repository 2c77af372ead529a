"""Whole runs over pictures of many sizes: however they are dealt out, stopped or cached, they are
one run, and each picture counts as its folder says.
"""

import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image, ImageOps

from hn import build, cli, launch
from hn.build.pictures import build_encoder
from hn.config import Config
from hn.data.batches import Batch, Batches
from hn.data.cache.contexts import Contexts
from hn.data.pictures.decoding import survey
from hn.data.pictures.images import examples_of, load_examples
from hn.diffusion.base_model import BaseModel
from hn.diffusion.objective import Objective
from hn.evaluation import paired
from tests import runs, streamed, tiny
from tests.zygote import Kill

TOOL = "cache_latents"
STEPS = 24
SHAPING = {
    "resize_mode": "bucket",
    "random_crop": True,
    "crops_per_image": 2,
    "random_flip": True,
    "use_mask_files": True,
}
EVERYTHING = {
    **SHAPING,
    "shuffle_tags": True,
    "tag_dropout": 0.3,
    "caption_dropout": 0.2,
    "latent_sampling": "random",
    "max_train_steps": STEPS,
    "checkpointing_steps": 4,
}
TABLE = """
[[folder]]
path = "wide"
repeats = 3
[[folder]]
path = "high"
loss_weight = 0.25
[[folder]]
path = "prior"
regularization = true
loss_weight = 2
"""


def rising(size: tuple[int, int]) -> Image.Image:
    """A mask: black in the left quarter, then brighter and brighter."""
    levels = np.linspace(-85, 255, size[0]).clip(0).round().astype(np.uint8)
    return Image.fromarray(np.tile(levels, (size[1], 1)))


def make(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Pictures of one size with captions; every other one has a mask."""
    tiny.make_pictures(folder, count, size=size)
    for number in range(0, count, 2):
        rising(size).save(folder / f"{number}.mask.png")
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Three folders: wide pictures, high ones, squares of two sizes for regularization."""
    folder = tmp_path_factory.mktemp("folders")
    make(folder / "wide", 3, (48, 25))
    make(folder / "high", 4, (21, 40))
    make(folder / "prior", 3, (24, 24))
    Image.new("RGB", (200, 30), (9, 90, 200)).save(folder / "prior/panorama.png")
    (folder / "prior/panorama.txt").write_text("a panorama, the sea")
    (folder / "table.toml").write_text(TABLE)
    return folder / "table.toml"


def flags(model: Path, table: Path, output: Path, **changes) -> list[str]:
    return runs.settings(
        model,
        table.parent,
        output,
        **{"train_data_dir": None, "train_folders": table, **EVERYTHING, **changes},
    )


def note(folder: Path, rank: int) -> None:
    """Let a process of the zygote note what it sees."""
    draw = Batches._batch

    def drawn(self, step, slots, pictures):
        batch = draw(self, step, slots, pictures)
        assert len({latents.shape for latents in batch.latents}) == 1
        with open(folder / f"seen-{rank}", "a", encoding="utf-8") as file:
            for row in zip(slots, pictures, batch.prompts, strict=True):
                print(json.dumps([step, *row, list(batch.latents.shape)]), file=file)
        return batch

    Batches._batch = drawn


def seen(folder: Path) -> list:
    """What all processes saw, in the order of steps and slots."""
    lines = [line for path in folder.glob("seen-*") for line in path.read_text().splitlines()]
    return sorted(map(json.loads, lines))


@pytest.fixture(scope="module")
def alone(zygote, model, table, tmp_path_factory) -> Path:
    """One process, accumulation 2, not stopped."""
    folder = tmp_path_factory.mktemp("alone")
    arguments = flags(model, table, folder, gradient_accumulation_steps=2)
    ended = zygote.run(arguments, folder, before=note)
    assert ended.codes == [0], ended.said
    return folder


def test_two_processes_see_and_learn_what_one_does(zygote, model, table, tmp_path, alone):
    """Pictures, prompts and sizes of each slot are the same; weights but for the order of sums."""
    arguments = flags(model, table, tmp_path, expect_world_size=2)
    ended = zygote.run(arguments, tmp_path, world=2, before=note)
    assert ended.codes == [0, 0], ended.said
    assert len(seen(tmp_path)) == STEPS * 4
    assert seen(tmp_path) == seen(alone)
    assert len({tuple(row[-1]) for row in seen(alone)}) == 4
    assert runs.largest_difference(alone / "run/run.pt", tmp_path / "run/run.pt") < 1e-5
    assert runs.losses(tmp_path / "run") == pytest.approx(runs.losses(alone / "run"), rel=1e-5)


def goes_on_as(alone: Path, stopped: Path) -> None:
    last = f"checkpoints/step-{STEPS:08d}/resume/optimizer.safetensors"
    for name in ("run.pt", "run.safetensors", last):
        assert (stopped / name).read_bytes() == (alone / "run" / name).read_bytes()
    assert runs.losses(stopped) == runs.losses(alone / "run")


@pytest.mark.usefixtures("fresh_accelerate")
def test_killed_and_resumed_equals_not_killed(zygote, model, table, tmp_path, alone):
    arguments = flags(model, table, tmp_path, gradient_accumulation_steps=2)
    assert zygote.run(arguments, tmp_path, kill=Kill(0.02, saves=2)).codes == [-signal.SIGKILL]
    assert not (tmp_path / "run/run.pt").exists()
    assert runs.train_here([*arguments, "--resume_from_checkpoint", "latest"]) == 0
    goes_on_as(alone, tmp_path / "run")


@pytest.mark.usefixtures("fresh_accelerate")
def test_resumed_from_a_cache_alone_equals_not_stopped(model, table, tmp_path, alone):
    """From the middle of an epoch, after the pictures are gone."""
    stopped = shutil.copytree(alone / "run", tmp_path / "run")
    for path in sorted((stopped / "checkpoints").iterdir())[2:]:
        shutil.rmtree(path)
    (stopped / "run.pt").unlink()
    cache = shutil.move(stopped / "cache", tmp_path / "elsewhere")
    changes = {"train_folders": None, "cached_data_dir": cache, "gradient_accumulation_steps": 2}
    changes |= dict.fromkeys(("resolution", *SHAPING))
    arguments = flags(model, table, tmp_path, **changes, resume_from_checkpoint="latest")
    assert runs.train_here(arguments) == 0
    goes_on_as(alone, tmp_path / "run")


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (  # the global batch stays as it is
            {"train_batch_size": 4, "gradient_accumulation_steps": 1},
            "train_batch_size: 2 then, 4 now",
        ),
        ({"max_aspect_ratio": 2}, "max_aspect_ratio: 4.0 then, 2.0 now"),
        ({"no_upscale": True}, "no_upscale: False then, True now"),
        ({"crops_per_image": 3}, "crops_per_image: 2 then, 3 now"),
    ],
)
def test_resuming_with_other_batches_is_refused(
    model, table, tmp_path, alone, capsys, changes, named
):
    shutil.copytree(alone / "run", tmp_path / "run")
    changes = {"gradient_accumulation_steps": 2, "max_train_steps": STEPS + 1, **changes}
    arguments = flags(model, table, tmp_path, **changes, resume_from_checkpoint="latest")
    assert runs.train_here(arguments) == 2
    assert named in capsys.readouterr().err


def batches_of(arguments: list[str]) -> tuple[Batches, BaseModel, Config]:
    """The batches of a run with these settings, as the script makes them."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    config = cli.parse(arguments)
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=config.training.gradient_accumulation_steps
    )
    config = launch.resolve(config, accelerator, launch.run_folder(config))
    datasets = build.build_datasets(config, accelerator)
    base, cache = build.build_base_model(config, accelerator), build.build_cache(config)
    contexts = Contexts(base, cache.store)
    batches = build.build_batches(config, accelerator, datasets, base, contexts, cache)
    assert isinstance(batches, Batches)
    return batches, base, config


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_each_picture_comes_as_often_as_its_folder_says(model, table, tmp_path, batch_size):
    """9 + 4 entries to learn from; 4 for regularization become 12. Over six epochs of 25."""
    changes = {"random_crop": None, "crops_per_image": None, "train_batch_size": batch_size}
    batches, *_ = batches_of(flags(model, table, tmp_path, **changes))
    epochs = 6
    counts = Counter(
        picture
        for step in range(epochs * 25 // batch_size)
        for batch in batches.at(step)
        for picture in batch.pictures
    )
    assert sum(counts.values()) == epochs * 25
    for picture, times in counts.items():
        expected = epochs * (3 if picture < 3 else 1 if picture < 7 else 3)
        assert times == pytest.approx(expected, abs=1 if batch_size > 1 else 0)
    prior = sum(times for picture, times in counts.items() if picture > 6)
    assert prior == pytest.approx(epochs * 12, abs=batch_size)
    assert batches.pictures == 25


def gradient(config: Config, base: BaseModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch for some prediction, and its gradient with respect to that."""
    objective = Objective(config.objective, base.alphas_cumprod, base.prediction)
    problem = objective.draw(batch.latents, batch.step, batch.slots, batch.loss_weights)
    generator = torch.Generator().manual_seed(batch.step)
    prediction = torch.randn(problem.target.shape, generator=generator, requires_grad=True)
    loss = objective.loss(prediction, problem, torch.zeros(()))
    loss.backward()
    assert prediction.grad is not None
    return loss.detach(), prediction.grad


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_loss_of_a_folder_is_weighted_exactly(model, table, tmp_path):
    """Batches of one; 0.25 and 2 are exact in binary, and so are their products."""
    even = table.with_name("even.toml")
    even.write_text("".join(line for line in TABLE.splitlines(True) if "loss_w" not in line))
    given = {"train_batch_size": 1, "latent_cache_dir": tmp_path / "cache"}
    weighted, plain = (batches_of(flags(model, file, tmp_path, **given)) for file in (table, even))
    counts = Counter()
    for step in range(50):
        (first,), (second,) = weighted[0].at(step), plain[0].at(step)
        assert first.pictures == second.pictures
        assert torch.equal(first.latents, second.latents)
        picture = first.pictures[0]
        factor = 1 if picture < 3 else 0.25 if picture < 7 else 2
        loss, slope = gradient(weighted[2], weighted[1], first)
        plain_loss, plain_slope = gradient(plain[2], plain[1], second)
        assert loss == factor * plain_loss
        assert torch.equal(slope, factor * plain_slope)
        counts[factor] += 1
    assert min(counts[factor] for factor in (1, 0.25, 2)) > 4


def pixels_of(picture: Image.Image, frame, mirrored: bool) -> Image.Image:
    """What a variant shows, worked out by Pillow alone."""
    seen = picture.resize(frame.resized, frame.resample).crop(frame.box)
    return ImageOps.mirror(seen) if mirrored else seen


@pytest.mark.usefixtures("fresh_accelerate")
def test_what_a_mask_leaves_out_is_not_learnt_in_any_variant(model, table, tmp_path):
    """Which crop a batch shows, and whether mirrored, is told by encoding all of them again."""
    changes = {"train_batch_size": 1, "latent_sampling": "deterministic"}
    batches, base, config = batches_of(flags(model, table, tmp_path, **changes))
    base = BaseModel.load(str(model))
    encoder = build_encoder(config, base)
    rows = [*examples_of(load_examples(config.data))]
    found = set()
    for step in range(100):
        (batch,) = batches.at(step)
        (picture,) = batch.pictures
        example = rows[picture]
        if example.mask is None:
            assert batch.loss_weights is not None
            assert len(batch.loss_weights.unique()) == 1
            continue
        shown, mask = Image.open(example.source["path"]), Image.open(example.mask["path"])
        for variant in encoder.variants_of(survey(example)):
            values = np.asarray(pixels_of(shown.convert("RGB"), variant.frame, variant.mirrored))
            values = torch.from_numpy(values.copy()).permute(2, 0, 1)[None] / 127.5 - 1
            if torch.equal(base.encode_images(values).mean[0], batch.latents[0]):
                break
        else:
            pytest.fail("the batch shows no variant of its picture")
        found.add((picture, variant.frame.corner, variant.mirrored))
        levels = np.asarray(pixels_of(mask, variant.frame, variant.mirrored))
        columns = levels.max(0).reshape(-1, 2).max(1)  # of latents: pairs of pixels
        _, slope = gradient(config, base, batch)
        black = columns == 0
        assert (slope[..., black & np.roll(black, 1) & np.roll(black, -1)] == 0).all()
        assert (slope[..., columns > 40] != 0).all()
        assert black.any()
    assert {mirrored for *_, mirrored in found} == {False, True}
    corners = Counter((picture, mirrored) for picture, _, mirrored in found)
    assert max(corners.values()) == 2


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("mode", ["bucket", "pad"])
def test_held_out_pictures_of_many_sizes_are_measured_as_one_by_one(
    model, table, tmp_path, monkeypatch, mode
):
    """With masks, with padding, through a cache that knows no pictures."""
    held_out = make(tmp_path / "held-out", 3, (24, 24))
    for number, size in enumerate([(48, 25), (25, 48), (48, 25), (100, 16)], start=3):
        folder = make(tmp_path / "more", 1, size)
        for file in folder.iterdir():
            file.rename(held_out / file.name.replace("0", str(number), 1))
        folder.rmdir()
    crops = {} if mode == "bucket" else {"random_crop": None, "crops_per_image": None}
    changes = {"resize_mode": mode, "max_train_steps": 2, "latent_cache_dir": tmp_path / "cache"}
    changes |= {"validation_data_dir": held_out, **crops}
    measured = []
    measure = paired.measure

    def noted(pictures, rows, *others):
        measured.append(rows)
        return measure(pictures, rows, *others)

    monkeypatch.setattr(paired, "measure", noted)
    assert runs.train_here(flags(model, table, tmp_path / "at-once", **changes)) == 0
    at_once = runs.metrics(tmp_path / "at-once/run")[-1]
    assert max(map(len, measured)) == paired.BATCH
    # with and without, of 7 pictures: 3 squares take two batches
    assert len(measured) == 2 * (2 + 1 + 1 + 1 if mode == "bucket" else 4)
    measured.clear()
    monkeypatch.setattr(paired, "BATCH", 1)
    cached = {"train_folders": None, "validation_data_dir": None, "latent_cache_dir": None}
    cached |= {"cached_data_dir": tmp_path / "cache"} | dict.fromkeys(("resolution", *SHAPING))
    arguments = flags(model, table, tmp_path / "alone", **{**changes, **cached})
    assert runs.train_here(arguments) == 0
    assert len(measured) == 2 * 7 * paired.DRAWS
    one_by_one = runs.metrics(tmp_path / "alone/run")[-1]
    for name in ("heldout_loss", "heldout_base_loss"):
        assert one_by_one[name] == pytest.approx(at_once[name], rel=1e-6)


@pytest.mark.usefixtures("fresh_accelerate")
def test_previews_beside_buckets_change_nothing(model, table, tmp_path, alone):
    drawn = {"validation_prompt": ["a star"], "validation_inference_steps": 2}
    arguments = flags(model, table, tmp_path, gradient_accumulation_steps=2, **drawn)
    assert runs.train_here([*arguments, "--validation_steps", "12"]) == 0
    goes_on_as(alone, tmp_path / "run")
    for step in (12, 24):
        with Image.open(tmp_path / f"run/previews/step-{step:08d}.png") as grid:
            grid.load()


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_stream_of_many_sizes_resumes_to_the_same_bits(model, tmp_path):
    made = [*streamed.scenes(5, (48, 25)), *streamed.scenes(4, (21, 40)), *streamed.scenes(3)]
    folder = streamed.write_parquet(tmp_path / "set", made, 2)
    changes = {"streaming": True, "shuffle_buffer": 6, "dataset_name": folder}
    changes |= {"train_folders": None, "crops_per_image": None, "use_mask_files": None}
    whole = flags(model, Path(folder), tmp_path / "whole", **changes, max_train_steps=8)
    assert runs.train_here(whole) == 0
    stopped = flags(model, Path(folder), tmp_path / "stopped", **changes, max_train_steps=8)
    checkpoint = "run/checkpoints/step-00000004"
    shutil.copytree(tmp_path / "whole" / checkpoint, tmp_path / "stopped" / checkpoint)
    assert runs.train_here([*stopped, "--resume_from_checkpoint", "latest"]) == 0
    first, second = (tmp_path / name / "run/run.pt" for name in ("whole", "stopped"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_cache_on_the_hub_trains_as_the_folder_does(run, hub, model, table, tmp_path, alone):
    """Pushed, and fetched by a run that has no pictures."""
    arguments = flags(model, table, tmp_path, gradient_accumulation_steps=2)
    pushed = ["-o", str(tmp_path / "cache"), *arguments, "--push_to_hub", "me/cache"]
    result = run(TOOL, *pushed)
    assert result.returncode == 0, result.stderr
    assert "me/cache" in result.stdout.splitlines()[-1]
    shutil.rmtree(tmp_path / "cache")
    source = {"train_folders": None, "cached_data_dir": "me/cache"}
    source |= dict.fromkeys(("resolution", *SHAPING))
    changes = {"gradient_accumulation_steps": 2, **source}
    runs.forget_accelerate()
    assert runs.train_here(flags(model, table, tmp_path, **changes)) == 0
    goes_on_as(alone, tmp_path / "run")


def test_pushing_without_a_token_is_refused_before_any_work(run, hub, model, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    arguments = runs.settings(model, tmp_path / "no pictures", tmp_path)
    pushed = ["-o", str(tmp_path / "cache"), *arguments, "--push_to_hub", "me/cache"]
    result = run(TOOL, *pushed)
    assert result.returncode == 8
    assert "token" in result.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_whose_pictures_changed_says_which(model, table, tmp_path, capsys):
    """A caption, a picture, a mask edited; one gone, one new; a folder that counts otherwise."""
    folder = shutil.copytree(table.parent, tmp_path / "folders")
    arguments = flags(model, folder / "table.toml", tmp_path, max_train_steps=2)
    assert runs.train_here(arguments) == 0
    again = [*arguments, "--resume_from_checkpoint", "latest", "--max_train_steps", "4"]
    (folder / "wide/1.txt").write_text("another caption")
    assert runs.train_here(again) == 2
    said = capsys.readouterr().err
    assert said.count("of the pictures, ") == 1
    assert "  of the pictures, another caption: 1 ('wide/1.png')\n" in said
    shutil.copy(table.parent / "wide/1.txt", folder / "wide/1.txt")
    Image.open(folder / "high/1.png").rotate(180).save(folder / "high/1.png")
    Image.new("L", (21, 40), 99).save(folder / "high/0.mask.png")
    for stem in ("prior/1", "wide/2"):
        for file in folder.glob(f"{stem}.*"):
            file.rename(file.with_name(f"renamed-{file.name}"))
    file = folder / "table.toml"
    file.write_text(file.read_text().replace("loss_weight = 0.25", 'caption_suffix = "!"'))
    assert runs.train_here(again) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "of the pictures" in line]
    high = "4 ('high/0.png', 'high/1.png', 'high/2.png', 'high/3.png')"
    assert [line.removeprefix("  of the pictures, ") for line in lines] == [
        "gone: 2 ('wide/2.png', 'prior/1.png')",
        "new: 2 ('wide/renamed-2.png', 'prior/renamed-1.png')",
        "another picture: 1 ('high/1.png')",
        f"another caption_suffix: {high}",
        "another mask: 1 ('high/0.png')",
        f"another loss_weight: {high}",
    ]
