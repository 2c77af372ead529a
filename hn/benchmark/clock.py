"""How long a step takes: in rounds in which everyone takes one, so that what else the machine does
is the same for all of them.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor
from tqdm import tqdm

Step = Callable[[int], object]
MATRIX = {"cpu": 1024, "cuda": 8192}  # a side, large enough for full speed
DENSE_BF16 = 790e12  # products that an H100 or H200 sustains each second in bfloat16


def run(steps: Mapping[str, Step], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each in each round, after one that does not count; the order turns every round.

    On a CPU the time that the process computed, whoever else does; on a GPU that between events.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in tqdm(range(rounds + 1), "rounds", unit="round", leave=False):
        order = list(steps) if number % 2 else list(steps)[::-1]
        for name in order:
            taken = timed(lambda name=name, number=number: steps[name](number), device)
            if number:
                seconds[name].append(taken)
    return seconds


def timed(act: Callable[[], object], device: str) -> float:
    """Seconds that something takes on the device."""
    if not device.startswith("cuda"):
        start = time.process_time()
        act()
        return time.process_time() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    act()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def ratio(seconds: list[float], to: list[float]) -> float:
    """How many times faster than another: the median over rounds."""
    return median(other / own for own, other in zip(seconds, to, strict=True))


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Floating point operations per second of a large product, the best of a few."""
    side = MATRIX[torch.device(device).type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> Tensor:
        return a @ b

    timed(multiply, device)
    return 2 * side**3 / min(timed(multiply, device) for _ in range(5))


def nominal_rate(device: str, dtype: torch.dtype) -> float | None:
    """What is known of the device, to be held against what is measured; None of most."""
    if not device.startswith("cuda") or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return DENSE_BF16 if "H100" in name or "H200" in name else None
