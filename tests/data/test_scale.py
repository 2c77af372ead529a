"""A million cached pictures: how soon training reads them, how fast, and in how much memory."""

import json
import subprocess
import sys

import pytest

from hn.diffusion.base_model import BaseModel
from tests import runs, scale

PICTURES = 1_000_000
BATCHES = 2000
FIRST_BATCH = 5  # seconds of processor time: others may be at work
MEMORY = 300  # MiB over what was there before the cache was opened
PEAK = 400  # MiB, while sorting, and with pages of captions that were looked at
GROWTH = 5  # MiB over all batches
ENTRIES = 28_000  # a second of processor time: what one row of Arrow at a time comes to
PICTURES_READ = 2000  # the same, with noise, prompts, contexts; a training step takes far longer


@pytest.fixture(scope="module")
def cache(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale") / "cache"
    scale.make(folder, PICTURES, BaseModel.load(str(model)).vae_fingerprint)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first", [0, 500_000])
def test_a_million_pictures_are_opened_and_read(model, cache, first):
    command = [sys.executable, "-m", "tests.scale", str(model), str(cache), str(first)]
    done = subprocess.run(
        [*command, str(BATCHES)], cwd=runs.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1))
    before, opened, warm, end = (found[name] for name in ("before", "opened", "warm", "end"))
    assert found["first_batch_cpu"] <= FIRST_BATCH
    assert opened["VmRSS"] - before["VmRSS"] <= MEMORY
    assert end["VmRSS"] - before["VmRSS"] <= MEMORY
    assert end["VmHWM"] - before["VmRSS"] <= PEAK
    assert end["VmRSS"] - warm["VmRSS"] <= GROWTH
    assert found["entries_cpu"] >= ENTRIES
    assert found["batches_cpu"] >= PICTURES_READ
