"""What many tests start from: a tiny model and its pictures, made once for each worker."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two workers share two cores; tiny models gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

from tests import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion with epsilon prediction."""
    return tiny.make_model(tmp_path_factory.mktemp("model"))


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


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state in classes; a test that trains in this process starts without."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
