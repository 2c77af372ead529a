"""Killed at any moment (SIGKILL) and resumed, a run ends in the same bits."""

import shutil
from pathlib import Path
from random import Random

import pytest

from tests import runs, streamed
from tests.zygote import Kill

CHANGES = {
    "max_train_steps": 24,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": 2,
    "latent_sampling": "random",
    "random_crop": True,
    "use_ema": True,
    "dropout_structure": (0, 0.2, 0),
    "train_batch_size": 1,
}
SAVE = 0.12  # seconds that a save takes, about


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def saved(folder: Path) -> bool:
    return any(folder.glob("run/checkpoints/step-*"))


def chain(zygote, flags, folder: Path, kills: list[Kill], worlds=lambda: 1) -> tuple[int, int, int]:
    """Kill a run and resume it, over and over, till the kills are used up; then let it end.

    `flags` are those of so many processes. Returns how many kills hit, how many inside a save, and
    how many left fewer than all processes dead.
    """
    hit = inside = 0
    kills = list(kills)
    while True:
        world = worlds()
        kill = kills.pop() if kills else None
        more = ["--resume_from_checkpoint", "latest"] if saved(folder) else []
        ended = zygote.run([*flags(world), *more], folder, world, kill)
        assert 1000 not in ended.codes, ended.said
        if ended.codes == [0] * world:
            return hit, inside, len(kills)
        assert -9 in ended.codes, ended.said
        assert kill is not None
        hit, inside = hit + 1, inside + ended.inside


def assert_same_bits(folder: Path, reference: Path, least: int = 11) -> None:
    """Weights, averages, optimizer, state, and the log of all losses."""
    last = sorted(reference.glob("checkpoints/step-*"))[-1].relative_to(reference)
    written = [*reference.glob("run*"), *(reference / last).rglob("*")]
    files = [path for path in written if path.is_file()]
    assert len(files) >= least
    for path in files:
        assert (folder / path.relative_to(reference)).read_bytes() == path.read_bytes(), path
    assert runs.losses(folder) == runs.losses(reference)
    names = [{path.name for path in f.glob("checkpoints/.*")} for f in (folder, reference)]
    assert names == [set(), set()]


def killed(
    zygote, model, pictures, cache, root: Path, count: int, *, world: int, seed: int, **changes
):
    """Chains of up to 8 kills, every second one inside a save, till `count` have hit."""
    draw, hits, insides, number = Random(seed), 0, 0, 0

    def flags(folder):
        split = {"gradient_accumulation_steps": 2 // world}
        settings = {**CHANGES, **split, **changes, "latent_cache_dir": cache}
        return lambda _: runs.settings(model, pictures, folder, **settings)

    assert zygote.run(flags(root / "whole")(1), root / "whole", world).codes == [0] * world
    while hits < count:
        number += 1
        folder = root / f"killed-{number}"
        kills = [kill(draw, world, index) for index in range(min(8, count - hits))]
        hit, inside, _ = chain(zygote, flags(folder), folder, kills, lambda: world)
        assert_same_bits(folder / "run", root / "whole/run")
        hits, insides = hits + hit, insides + inside
        assert number < 20 + count
    return hits, insides, number


def kill(draw: Random, world: int, index: int) -> Kill:
    """Every second one inside a save; of two processes every second pair kills one rank only."""
    rank = None if world == 1 or index % 4 < 2 else draw.randrange(world)
    if index % 2:
        return Kill(draw.uniform(0, SAVE), saves=draw.randint(1, 4), rank=rank)
    return Kill(draw.uniform(0, 0.8), rank=rank)


def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(
    zygote, model, pictures, cache, tmp_path
):
    hits, _, _ = killed(
        zygote, model, pictures, cache, tmp_path, 3, world=1, seed=0, max_train_steps=12
    )
    assert hits >= 3


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("world", "count"), [(1, 110), (2, 44)])
def test_many_kills(zygote, model, pictures, cache, tmp_path, world, count):
    hits, inside, chains = killed(
        zygote, model, pictures, cache, tmp_path, count, world=world, seed=1
    )
    print(f"{world} processes: {hits} kills, {inside} inside a save, {chains} runs, same bits")
    assert hits >= count
    assert inside >= count * (0.4 if world == 1 else 0.25)  # it is chance how many


def drawn(folder: Path) -> set[str]:
    """What the slots were trained on, however often."""
    return {line for path in folder.glob("drawn-*") for line in path.read_text().splitlines()}


def switched(zygote, model, pictures, cache, root: Path, kills: int, seed: int) -> int:
    """A run that is killed, and resumed with one or two processes, as it comes; against one."""
    draw, worlds = Random(seed), []

    def flags(folder):
        return lambda world: runs.settings(
            model,
            pictures,
            folder,
            **CHANGES,
            latent_cache_dir=cache,
            gradient_accumulation_steps=2 // world,
        )

    def world() -> int:
        worlds.append(2 if not worlds else draw.choice([1, 2]))
        return worlds[-1]

    whole, folder = root / "whole", root / f"switched-{seed}"
    if not whole.exists():
        assert zygote.run(flags(whole)(1), whole).codes == [0]
    shots = [Kill(draw.uniform(0, 0.8)) for _ in range(kills)]
    hits, _, _ = chain(zygote, flags(folder), folder, shots, world)
    assert drawn(folder) == drawn(whole)
    assert len(drawn(whole)) == 2 * CHANGES["max_train_steps"]
    rows = [runs.metrics(path / "run") for path in (folder, whole)]
    rates = [[row["learning_rate"] for row in each if "loss" in row] for each in rows]
    assert rates[0] == rates[1]
    assert runs.losses(folder / "run") == pytest.approx(runs.losses(whole / "run"), rel=1e-5)
    return hits


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_and_gone_on_with_another_number_of_processes(
    zygote, model, pictures, cache, tmp_path
):
    hits = sum(switched(zygote, model, pictures, cache, tmp_path, 8, seed) for seed in range(5))
    print(f"{hits} kills, each followed by one or two processes: same draws, same losses to 1e-5")
    assert hits >= 25


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("streaming", [False, True], ids=["cached", "streamed"])
def test_stopped_within_an_epoch_or_at_its_end(
    zygote, model, pictures, tmp_path, world, precision, accumulation, streaming
):
    """Twice for each of these: 32 cells."""
    changes = {
        "mixed_precision": precision,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": 1,
        "latent_sampling": "random",
        "checkpointing_steps": 1,
        "validation_steps": 0,
    }
    if streaming:
        data = streamed.write_parquet(tmp_path / "data", streamed.scenes(6), 2)
        changes |= {"train_data_dir": None, "dataset_name": data, "streaming": True}
        changes |= {"shuffle_buffer": 3}
    epoch = 6 // (accumulation * world)  # steps
    changes["max_train_steps"] = epoch + 2
    flags = runs.settings(model, pictures, tmp_path / "whole", **changes)
    assert zygote.run(flags, tmp_path / "whole", world).codes == [0] * world
    for step in {epoch, epoch + 1 if epoch == 1 else epoch - 1}:  # at the end, within
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole/run", folder / "run")
        for path in folder.glob("run/checkpoints/step-*"):
            if int(path.name[5:]) > step:
                shutil.rmtree(path)
        flags = runs.settings(model, pictures, folder, **changes, resume_from_checkpoint="latest")
        ended = zygote.run(flags, folder, world)
        assert ended.codes == [0] * world, ended.said
        assert f"at step {step}\n" in ended.said
        assert_same_bits(folder / "run", tmp_path / "whole/run", 7)
