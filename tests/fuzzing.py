"""Many spoilt files through our readers, watched: nothing may run, hang, or swell, and nothing is
raised but what is ours.
"""

import io
import resource
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch

from hn.errors import ModelError
from hn.network import files

SECONDS = 5  # for one file
MIB = 2**20
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.mkdir", "os.remove")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
_WRITING = set("wax+")


@dataclass
class Tally:
    """What became of the files."""

    accepted: int = 0
    refused: int = 0
    differing: int = 0  # accepted, with other tensors than the whole file
    slowest: float = 0.0
    grown: float = 0.0  # MiB of memory, at the peak
    happened: list[str] = field(default_factory=list)  # what no reader may do


class Watch:
    """A hook of the interpreter, which cannot be taken out again: it rests while nobody watches."""

    def __init__(self) -> None:
        self.happened: list[str] | None = None
        self.offline = False  # whether whoever asks for the network is told that there is none
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.offline and event.startswith(_NETWORK):
            raise ConnectionRefusedError(f"{event} {arguments!r:.200}")
        if self.happened is None:
            return
        mode = arguments[1] if event == "open" else None
        written = isinstance(mode, str) and _WRITING & set(mode)
        if written or event.startswith((*_FORBIDDEN, "socket.")):
            self.happened.append(f"{event} {arguments!r:.200}")


@cache
def the_watch() -> Watch:
    """One for all."""
    return Watch()


@contextmanager
def watched() -> Iterator[list[str]]:
    """What is run, sent, made or written meanwhile; nothing of that may be."""
    watch, happened = the_watch(), []
    watch.happened = happened
    try:
        yield happened
    finally:
        watch.happened = None


@contextmanager
def offline() -> Iterator[None]:
    """Nobody reaches the network meanwhile."""
    the_watch().offline = True
    try:
        yield
    finally:
        the_watch().offline = False


def changed(data: bytes, random: Random, dense: int = 1500) -> bytes:
    """Some bytes changed, put in, or taken out, mostly among the first `dense`; or the end gone."""
    kind = random.randrange(10)
    if kind < 2:
        return data[: random.randrange(len(data))]
    place = random.randrange(len(data) if random.random() < 0.3 else min(dense, len(data)))
    if kind == 2:
        return data[:place] + random.randbytes(random.randint(1, 20)) + data[place:]
    if kind == 3:
        return data[:place] + data[place + random.randint(1, 20) :]
    spoilt = bytearray(data)
    for _ in range(random.randint(1, 4)):
        spoilt[random.randrange(len(data) if random.random() < 0.3 else min(dense, len(data)))] = (
            random.choice((0, 255, random.randrange(256)))
        )
    return bytes(spoilt)


def changed_pickle(data: bytes, random: Random) -> bytes:
    """Of a `.pt`: the pickle changed, under a checksum that is right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            pickled = name.endswith("data.pkl")
            new.writestr(name, changed(content, random) if pickled else content)
    return buffer.getvalue()


def fuzz_hypernetworks(
    data: bytes, change: Callable[[bytes, Random], bytes], count: int, path: Path
) -> Tally:
    """Read `count` spoilt copies of a hypernetwork's file."""
    path.write_bytes(data)
    try:
        whole = files.read(path).tensors
    except ModelError:
        whole = {}  # of a hostile one
    random, tally, before = Random(0), Tally(), _peak()
    for _ in range(count):
        path.write_bytes(change(data, random))
        with timed(tally), watched() as happened:
            try:
                read = files.read(path).tensors
            except ModelError as error:
                tally.refused += 1
                assert all(c.isprintable() or c == "\n" for c in str(error))
                assert len(str(error)) < 3000
            else:
                tally.accepted += 1
                tally.differing += not same(read, whole)
        tally.happened += happened
    tally.grown = _peak() - before
    return tally


def same(one: Any, other: Any) -> bool:
    """Whether two sets of tensors hold the same bits under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@contextmanager
def timed(tally: Tally) -> Iterator[None]:
    """A hang ends with an error."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    began = time.process_time()
    try:
        yield
    finally:
        signal.alarm(0)
        tally.slowest = max(tally.slowest, time.process_time() - began)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
