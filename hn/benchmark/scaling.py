"""What more processes cost: a step with and without its exchange of gradients, and a model of it.

    python -m hn.benchmark.scaling -n 1 2 4
    python -m hn.benchmark.scaling path/to/unet --side 32 --batch 1 -n 2 --json scaling.json

Each process does a fixed amount of work, in one thread. Both kinds of step take turns within one
run, so that what else the machine does falls on both; what is reported are medians.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hn import demo

ROUNDS, PINGS = 10, 20
NOMINAL = 1000  # processes, at most, of the table


@dataclass(frozen=True)
class Link:
    """What joins processes: bytes per second that each can send, and seconds of one hop."""

    bandwidth: float
    latency: float

    def seconds(self, processes: int, size: int) -> float:
        """How long a ring takes to sum `size` bytes over so many processes (Patarasu and Yuan,
        "Bandwidth optimal all-reduce algorithms", 2009), with a tree's hops.
        """
        shares = 2 * (processes - 1) / processes
        return shares * size / self.bandwidth + self.latency * math.log2(processes)


@dataclass(frozen=True)
class Measured:
    """Medians of one number of processes.

    `step`, `alone`: seconds with and without the exchange of `size` bytes; `cpu`: the ratio of both
    in processor time. `summed`, `hop`: seconds to sum as many bytes, and one number, and no more.
    """

    processes: int
    size: int
    step: float
    alone: float
    cpu: float
    summed: float
    hop: float

    @property
    def efficiency(self) -> float:
        """How much of the work of so many single processes is done."""
        return self.alone / self.step

    def link(self) -> Link:
        """What the exchange alone tells of what joins the processes."""
        latency = self.hop / math.log2(self.processes)
        shares = 2 * (self.processes - 1) / self.processes
        return Link(shares * self.size / max(self.summed - self.hop, 1e-9), latency)


def efficiency(step: float, size: int, link: Link, processes: int) -> float:
    """What is left of each process, if nothing of the exchange hides behind the backward pass."""
    return step / (step + link.seconds(processes, size))


def measure(unet: Path, side: int, batch: int) -> Measured:
    """In one of the processes that torchrun started."""
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    try:
        return _measured(unet, side, batch)
    finally:
        # Not within, where DDP would then be the last to hold the group of processes: torch takes
        # it down with the interpreter locked, while its threads may wait for that lock.
        distributed.destroy_process_group()


def _measured(unet: Path, side: int, batch: int) -> Measured:
    """While the processes are a group."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    from hn.diffusion.attention import context_dims
    from hn.diffusion.denoiser import Denoiser
    from hn.diffusion.memory.rehearsal import blank_condition
    from hn.network.module import Hypernetwork

    model = UNet2DConditionModel.from_pretrained(unet).requires_grad_(False)
    hypernetwork = Hypernetwork.create(context_dims(model), activation_func="mish", seed=0).train()
    denoiser = DistributedDataParallel(Denoiser(model, hypernetwork))
    optimizer = torch.optim.AdamW(hypernetwork.parameters())
    noisy = torch.randn(batch, model.config["in_channels"], side, side)
    like = blank_condition(model, batch, 77, torch.float32).zeroed()
    condition = replace(like, context=torch.randn(like.context.shape))
    timesteps = torch.arange(batch) * 1000 // batch

    def step(exchange: bool) -> None:
        with nullcontext() if exchange else denoiser.no_sync():
            denoiser(noisy, timesteps, condition)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    size = 4 * sum(parameter.numel() for parameter in hypernetwork.parameters())
    times = [
        [_timed(lambda kind=kind: step(kind)) for kind in (True, False)] for _ in range(ROUNDS)
    ]
    flat, one = torch.zeros(size // 4), torch.zeros(1)
    summed, hop = (
        statistics.median(_timed(lambda it=it: distributed.all_reduce(it))[0] for _ in range(PINGS))
        for it in (flat, one)
    )
    wall, cpu = ([(both[0][kind], both[1][kind]) for both in times[1:]] for kind in (0, 1))
    return Measured(
        processes=distributed.get_world_size(),
        size=size,
        step=statistics.median(it[0] for it in wall),
        alone=statistics.median(it[1] for it in wall),
        cpu=statistics.median(it[1] / it[0] for it in cpu),
        summed=summed,
        hop=hop,
    )


def _timed(act: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - wall, time.process_time() - cpu


def run(processes: int, flags: Sequence[str]) -> Measured:
    """Start so many, and return what the first of them measured."""
    with TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(processes), "-m", "hn.benchmark.scaling"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command += [*flags, "--found", str(found)]
        subprocess.run(command, check=True, env=environment)  # noqa: S603  # our own module
        return Measured(**json.loads(found.read_text()))


def table(measured: Sequence[Measured]) -> str:
    """What was measured beside what the model says, from the first with several processes on."""
    lines = ["processes   step ms  exchange ms  efficiency  of CPU time  model's exchange ms"]
    several = [it for it in measured if it.processes > 1]
    link = several[0].link() if several else None
    for it in measured:
        model = 1e3 * link.seconds(it.processes, it.size) if link else 0.0
        lines.append(
            f"{it.processes:9} {1e3 * it.step:9.1f} {1e3 * it.summed:12.2f} {it.efficiency:11.3f} "
            f"{it.cpu:12.3f} {model:20.2f}"
        )
    if link:
        first, most = several[0], [2**k for k in range(11) if 2**k <= NOMINAL]
        shown = ", ".join(
            f"{n}: {efficiency(first.alone, first.size, link, n):.3f}" for n in (*most, NOMINAL)
        )
        lines.append(f"{first.size / 1e6:.2f} MB of gradients; the model's efficiency: {shown}")
    return "\n".join(lines)


def main() -> int:
    """Read the flags; measure, in the processes that this one starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("unet", type=Path, nargs="?", default=demo.MODEL / "unet", help="folder of a UNet")
    add("--side", type=int, default=16, help="of the latents")
    add("--batch", type=int, default=16, help="pictures of each process")
    add("-n", "--processes", type=int, nargs="+", default=[1, 2], help="how many")
    add("--json", type=Path, metavar="FILE", help="write what was measured")
    add("--found", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.found is not None:
        found = measure(args.unet, args.side, args.batch)
        if os.environ["RANK"] == "0":
            args.found.write_text(json.dumps(asdict(found)))
        return 0
    flags = [str(args.unet), "--side", str(args.side), "--batch", str(args.batch)]
    measured = [run(processes, flags) for processes in args.processes]
    print(table(measured))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(it) for it in measured], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
