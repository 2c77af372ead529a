"""Imports once, forks many: real training processes that are there in no time, to be killed.

    with Zygote() as zygote:
        ended = zygote.run(flags, folder, world=2, kill=Kill(rank=1, delay=0.2, inside=True))

A process sends itself the signal (SIGKILL if none is named): its timer is armed when training has
started, or when a save has.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parent.parent
PATIENCE = 120  # seconds that the other processes have when one has ended


@dataclass(frozen=True)
class Kill:
    """When to kill: `delay` seconds after training started, or after its `saves`-th save began.

    `rank`: only this process; None: all of them. `number`: the signal.
    """

    delay: float
    saves: int = 0
    rank: int | None = None
    number: int = signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """Exit codes of the processes, a signal's number negated; whether one died in a save."""

    codes: list[int]
    inside: bool
    said: str


class Zygote:
    """The parent of all."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def run(
        self,
        flags: list[str],
        folder: Path,
        world: int = 1,
        kill: Kill | None = None,
        faults: dict[int, dict[int, str]] | None = None,
        before: Callable[[Path, int], None] | None = None,
        **environment: str,
    ) -> Ended:
        """Train in `world` processes to the end, or until they are killed.

        `faults`: what goes wrong, once, by process and step; then `noted-*` say what became of the
        steps. `folder` is for these, for `drawn-*` (what each slot was trained on), and for logs.
        `before`: a function of a module, which each process calls with `folder` and its rank.
        """
        folder.mkdir(parents=True, exist_ok=True)
        job = {"flags": flags, "folder": str(folder), "world": world, "faults": faults or {}}
        job["kill"] = None if kill is None else asdict(kill)
        job["before"] = None if before is None else [before.__module__, before.__name__]
        job["environment"] = environment
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        marks = list(folder.glob("inside-*"))
        said = "".join((folder / f"log-{rank}").read_text() for rank in range(world))
        for mark in marks:
            mark.unlink()
        return Ended(codes, bool(marks), said)


def main() -> None:
    """Read jobs, a line each; answer with exit codes."""
    sys.path.insert(0, str(ROOT))
    import train_hypernetwork  # noqa: F401  # all that is slow

    for line in sys.stdin:
        job = json.loads(line)
        port = _free_port()
        pids = [_fork(job, rank, port) for rank in range(job["world"])]
        print(json.dumps(_wait(pids)), flush=True)


def _fork(job: dict[str, Any], rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    log = os.open(Path(job["folder"]) / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    code = 70
    try:
        code = _train(job, rank, port)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _train(job: dict[str, Any], rank: int, port: int) -> int:
    import train_hypernetwork
    from hn import cli
    from tests import faults

    os.environ.update(job["environment"])
    if job["world"] > 1:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
        worlds = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(job["world"]))
        os.environ.update(where | ranks | worlds)
    if job["kill"] is not None and job["kill"]["rank"] in (None, rank):
        _arm(Kill(**job["kill"]), Path(job["folder"]) / f"inside-{rank}")
    faults.trace(Path(job["folder"]) / f"drawn-{rank}", setattr)
    mine = {int(step): kind for step, kind in job["faults"].get(str(rank), {}).items()}
    if job["faults"]:
        faults.inject(lambda step: mine.pop(step, None), setattr)
    noted = faults.watch(setattr) if job["faults"] else []
    if job["before"] is not None:
        module, name = job["before"]
        getattr(importlib.import_module(module), name)(Path(job["folder"]), rank)
    code = train_hypernetwork.main(cli.parse(job["flags"]))
    (Path(job["folder"]) / f"noted-{rank}").write_text(json.dumps(noted))
    return code


def _arm(kill: Kill, mark: Path) -> None:
    """Start the timer where it is due, and note when a save is under way."""
    from hn.training.keeping.saving import Checkpoints
    from hn.training.watching.signals import Stop

    requested, save, count = Stop.requested, Checkpoints.save, iter(range(1, 10**6))

    def shoot() -> None:
        threading.Timer(kill.delay, os.kill, (os.getpid(), kill.number)).start()

    def started(self):
        if not kill.saves and not self._training:
            shoot()
        return requested(self)

    def saved(self, state):
        mark.touch()
        if next(count) == kill.saves:
            shoot()
        save(self, state)
        mark.unlink()

    Stop.requested, Checkpoints.save = started, saved


def _wait(pids: list[int]) -> list[int]:
    """Exit codes, in order; what does not end in time after another one is killed: -9 and 1000."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + 10**6
    while len(codes) < len(pids):
        for pid in [pid for pid in pids if pid not in codes]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
                deadline = min(deadline, time.monotonic() + PATIENCE)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = 1000
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main()
