"""What many tests start from: a tiny model and its pictures, made once for each worker."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import ACCOUNTS, WRITER, HubServer

# Two workers share two cores; tiny models gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

# Libraries read these when they are imported: the hub of all tests is ours, and so is its cache.
_HUB = HubServer()
_HUB_HOME = Path(tempfile.mkdtemp(prefix="hub-"))
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
    del os.environ[name]
os.environ.update(_HUB.environment(_HUB_HOME))

from tests import runs, single_files, tiny
from tests.tools.conftest import run  # noqa: F401  # a fixture, everywhere
from tests.zygote import Zygote

LONG = {"test_demo.py", "test_distributed.py", "processes"}  # else one worker waits for the other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest; where there is no GPU, skip what needs one, and say so."""
    import torch

    items.sort(key=lambda item: LONG.isdisjoint(item.path.parts))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs CUDA, which torch does not find here"))


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    _HUB.close()
    shutil.rmtree(_HUB_HOME, ignore_errors=True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub without repositories, with its writer logged in; nothing was fetched before.

    Afterwards: no body held a token, and nothing else was to be reached but the hub's own service
    of sizes (`datasets` asks it, and goes on without).
    """
    for kept in ("hub", "datasets"):
        shutil.rmtree(_HUB_HOME / kept, ignore_errors=True)
    _HUB.forget()
    monkeypatch.setenv("HF_TOKEN", WRITER)
    yield _HUB
    assert not [r.path for r in _HUB.requests for token in ACCOUNTS if token.encode() in r.body]
    assert not [url for url in _HUB.foreign if not url.startswith("http://datasets-server.")]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion with epsilon prediction."""
    return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model of every family, as a folder; `single_files.as_file` makes a file of it."""
    root = tmp_path_factory.mktemp("families")
    return {kind: make(root / kind) for kind, make in single_files.MAKERS.items()}


@pytest.fixture(scope="session")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion XL."""
    return tiny.make_xl_model(tmp_path_factory.mktemp("xl") / "base")


@pytest.fixture(scope="session")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random refiner of Stable Diffusion XL."""
    return tiny.make_xl_model(tmp_path_factory.mktemp("xl") / "refiner", refiner=True)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six captioned pictures."""
    return tiny.make_pictures(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an alpha channel that shows the left part of each."""
    folder = tmp_path_factory.mktemp("masked") / "set"
    return tiny.make_pictures(folder, alpha=tiny.left_part)


@pytest.fixture(scope="session")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with captions of every kind: files, metadata, names, several each, wildcards."""
    return tiny.make_worded_pictures(tmp_path_factory.mktemp("worded") / "set")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts real trainings in no time."""
    with Zygote() as started:
        yield started


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """A test that trains in this process starts without the state of another."""
    runs.forget_accelerate()
    yield
    runs.forget_accelerate()
