"""All contenders on one scene: counted, checked for room, compared, timed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hn.benchmark import clock, room
from hn.benchmark.contender import Contender
from hn.benchmark.contenders import CONTENDERS, OURS, REFERENCE
from hn.benchmark.counts import Counts, count
from hn.benchmark.ops import Ops
from hn.benchmark.rows import Row
from hn.benchmark.scene import Scene
from hn.errors import OptionError, meant, shown


@dataclass(frozen=True)
class Measured:
    """The rows, and what they are `about`: sizes, machine."""

    rows: list[Row]
    about: dict[str, Any]


def prepare(rounds: int, threads: int) -> None:
    """Compute with so many threads of a CPU. Raises `OptionError` for what cannot be measured."""
    for name, value in (("rounds", rounds), ("threads", threads)):
        if value < 1:
            raise OptionError(f"{name} must be at least 1; found {value}")
    torch.set_num_threads(threads)


def choose(wanted: Sequence[str]) -> list[str]:
    """The names of those that are to be measured; none given: all. The reference is always there.

    Raises `OptionError` for one that nobody knows.
    """
    for name in wanted:
        if name not in CONTENDERS:
            raise OptionError(
                f"only {shown(name)} is none of {' '.join(CONTENDERS)}{meant(name, CONTENDERS)}"
            )
    return [name for name in CONTENDERS if not wanted or name in wanted or name == REFERENCE]


def measure(scene: Scene, names: Sequence[str], rounds: int) -> Measured:
    """In no rounds only what needs no machine: operations on numbers, and bytes.

    Raises `StorageError` before anything is computed if there is no room.
    """
    if not rounds:
        return _counted(scene, names)
    counts = _counts(scene, dict.fromkeys([*names, OURS]))
    room.check(scene, {name: counts[name] for name in names})
    contenders = {name: CONTENDERS[name](scene) for name in tqdm(names, "building", leave=False)}
    firsts = {
        name: _first_step(scene, contender)
        for name, contender in tqdm(contenders.items(), "first steps", leave=False)
    }
    seconds = clock.run(contenders, rounds, scene.device)
    rate = clock.matmul_rate(scene.device, scene.dtype)
    nominal = clock.nominal_rate(scene.device, scene.dtype)
    rows = []
    for name in names:
        ours = contenders[name].network is not None
        first, reference = firsts[name], firsts[REFERENCE]
        model = counts[OURS if ours else name].flops / median(seconds[name])
        rows.append(
            Row(
                name=name,
                seconds=median(seconds[name]),
                speed_up=clock.ratio(seconds[name], seconds[REFERENCE]),
                images_per_second=scene.batch / median(seconds[name]),
                flops_per_image=counts[name].flops / scene.batch,
                mfu=model / rate,
                mfu_nominal=None if nominal is None else model / nominal,
                hfu=counts[name].flops / median(seconds[name]) / rate,
                peak=counts[name].peak,
                saved=counts[name].saved,
                allocated=first.allocated,
                ops=first.ops,
                syncs=first.syncs,
                gradient_difference=_difference(first, reference) if ours else None,
                rounds=seconds[name],
                remark=contenders[name].remark(),
            )
        )
    return Measured(rows, _about(scene, rate))


def _counted(scene: Scene, names: Sequence[str]) -> Measured:
    rows = [
        Row(
            name=name,
            flops_per_image=counts.flops / scene.batch,
            peak=counts.peak,
            saved=counts.saved,
        )
        for name, counts in _counts(scene, names).items()
    ]
    return Measured(rows, _sizes(scene))


def _counts(scene: Scene, names: Iterable[str]) -> dict[str, Counts]:
    return {
        name: count(CONTENDERS[name], scene) for name in tqdm([*names], "counting", leave=False)
    }


@dataclass(frozen=True)
class _First:
    """The `gradient` of the first problem, operations of both passes, waits of a step, and bytes
    that CUDA's allocator held at most in a step, above those before it.
    """

    gradient: Tensor
    ops: int
    syncs: int
    allocated: int | None


def _first_step(scene: Scene, contender: Contender) -> _First:
    problem = contender.problem(0)
    contender.backward(problem)
    gradient = contender.gradient()
    with Ops(scene.device) as passes:
        contender.backward(problem)
    with Ops(scene.device) as step:
        contender(0)
    return _First(gradient, passes.count, len(step.syncs), _allocated(scene, contender))


def _allocated(scene: Scene, contender: Contender) -> int | None:
    if not scene.device.startswith("cuda"):
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _difference(first: _First, reference: _First) -> float:
    """Of the gradients, relative to the reference's norm."""
    difference = (first.gradient - reference.gradient).norm()
    return float(difference / reference.gradient.norm())


def _about(scene: Scene, rate: float) -> dict[str, Any]:
    cuda = scene.device.startswith("cuda")
    return {
        **_sizes(scene),
        "device": torch.cuda.get_device_name(scene.device) if cuda else scene.device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "matmul_tflops": rate / 1e12,
    }


def _sizes(scene: Scene) -> dict[str, Any]:
    return {
        "resolution": scene.resolution,
        "batch": scene.batch,
        "precision": scene.precision,
        "dims": scene.dims,
    }
