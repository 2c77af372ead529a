"""The tools are there at once: what they cost is loaded after the flags are read."""

import subprocess
import sys
import time

import pytest

from tests import runs


@pytest.mark.parametrize("name", ["bake", "blend", "distil", "export_lora"])
def test_help_comes_without_torch(name):
    began = time.monotonic()
    asked = subprocess.run(
        [sys.executable, "-X", "importtime", f"tools/{name}.py", "--help"],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(runs.ROOT)},
    )
    assert time.monotonic() - began < 2  # half a second on an idle machine
    assert "--output" in asked.stdout
    loaded = {line.rpartition("|")[2].strip() for line in asked.stderr.splitlines()}
    assert not loaded & {"torch", "diffusers", "numpy"}
