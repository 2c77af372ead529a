"""What the processes of a run tell each other by the store they met in, and who is to blame.

The store answers also when no collective operation does, so it is asked when these hang.
"""

import json
import os
import signal
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.distributed import distributed_c10d

ROOT = Path(__file__).parents[3]
LOST = (torch.distributed.DistError, RuntimeError)  # what a store raises that is gone
_PATIENCE = timedelta(seconds=5)
# Where a process waits for others: in these libraries, or in ours for what they reduced.
_WAITING = ("torch/distributed/", "torch/nn/parallel/", "torch/autograd/", "accelerate/")
_READING = ("signals.py", "guard.py", "reporter.py")


@dataclass(frozen=True)
class Sign:
    """A sign of life: `number` rises; `idle` seconds without a forward, and what goes on instead.

    `waits`: for other processes. `over`: it has done what it had to.
    """

    number: int
    idle: float
    place: str
    waits: bool
    over: bool = False
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


@dataclass(frozen=True)
class Verdict:
    """Why all of them end. `silent`: ranks without a sign of life.

    `by`: the rank that raised an error; -1 where one hangs.
    """

    reason: str
    by: int = -1
    silent: tuple[int, ...] = ()


class Peers:
    """The processes of a run, seen from one of them; alone, there is nobody to ask.

    All of them must make theirs at the same time. What they say is told from what was said before
    they were started again, which the store of a launcher remembers. Every method may raise one of
    `LOST` where the store is gone.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self._store: Any = None
        if count > 1:  # of its own: the main thread may be waiting with the other one
            shared: Any = distributed_c10d._get_default_store()
            self._store = shared.clone()
            self._store.set_timeout(_PATIENCE)
        (self._attempt,) = broadcast_object_list([os.urandom(8).hex()])

    def show(self, sign: Sign) -> None:
        """Give a sign of life."""
        if self._store is not None:
            self._store.set(self._key(self.rank), json.dumps(asdict(sign)))

    def signs(self) -> dict[int, Sign]:
        """The last one of each process that gave any."""
        if self._store is None:
            return {}
        keys = {rank: self._key(rank) for rank in range(self.count)}
        known = {rank: key for rank, key in keys.items() if self._store.check([key])}
        return {rank: Sign(**json.loads(self._store.get(key))) for rank, key in known.items()}

    def tell(self, verdict: Verdict) -> Verdict:
        """Tell all; returns what was told first."""
        if self._store is None:
            return verdict
        told = self._store.compare_set(self._key("verdict"), "", json.dumps(asdict(verdict)))
        return _read(told)

    def told(self) -> Verdict | None:
        """What was told, if anything was."""
        if self._store is None or not self._store.check([self._key("verdict")]):
            return None
        return _read(self._store.get(self._key("verdict")))

    def _key(self, of: object) -> str:
        return f"hn/{self._attempt}/{of}"


def is_broken(error: BaseException | None) -> bool:
    """Whether it is the end of another process that was raised here, as backends tell it."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(it in str(error) for it in ("/gloo/", "NCCL"))


def judge(before: dict[int, Sign], now: dict[int, Sign], count: int) -> Verdict:
    """Who is to blame that nothing goes on, from signs of life some seconds apart."""
    going = {rank: sign for rank, sign in now.items() if not sign.over}
    silent = [rank for rank, sign in going.items() if before.get(rank) == sign]
    silent += [rank for rank in range(count) if rank not in now]
    busy = [rank for rank, sign in going.items() if rank not in silent and not sign.waits]
    if silent:
        told = "gives no sign of life: it is stopped, or its machine is lost"
        return Verdict(f"{_named(silent, now)} {told}", silent=tuple(sorted(silent)))
    if busy:
        sign = now[min(busy)]
        told = f"has done nothing for {sign.idle:.0f} s, at {sign.place}"
        return Verdict(f"{_named(sorted(busy), now)} {told}")
    places = ", ".join(f"process {rank} at {sign.place}" for rank, sign in [*going.items()][:8])
    return Verdict(f"the processes wait for each other: {places}")


def end_stopped(verdict: Verdict, signs: dict[int, Sign]) -> None:
    """Kill those without a sign of life on this machine: a stopped one cannot end by itself."""
    for sign in (signs[rank] for rank in verdict.silent if rank in signs):
        if sign.host == socket.gethostname() and _parent(sign.pid) == os.getppid():
            with suppress(ProcessLookupError):
                os.kill(sign.pid, signal.SIGKILL)


def look_at(frame: FrameType | None) -> tuple[str, bool]:
    """Where a thread is, in our code if it is in any, and whether it waits there for others."""
    inner: list[str] = []
    at = frame
    while at is not None and not _ours(at):
        inner.append(at.f_code.co_filename)
        at = at.f_back
    shown = at or frame
    if shown is None:
        return "its end", True
    path = Path(shown.f_code.co_filename)
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    waits = any(part in path for path in inner for part in _WAITING)
    waits = waits or (not inner and path.name in _READING)
    return f"{name}:{shown.f_lineno} ({shown.f_code.co_name})", waits


def _ours(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts


def _named(ranks: list[int], signs: dict[int, Sign]) -> str:
    """Processes by rank, machine and number."""
    return ", ".join(
        f"process {rank}"
        + (f" ({signs[rank].host}, pid {signs[rank].pid})" if rank in signs else "")
        for rank in ranks[:8]
    )


def _parent(pid: int) -> int:
    """The parent of a process; 0 where that cannot be known."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])


def _read(told: bytes) -> Verdict:
    found = json.loads(told)
    return Verdict(found["reason"], found["by"], tuple(found["silent"]))
