"""What more processes cost, and what the model says of it."""

import json
import subprocess
import sys

import pytest

from hn.benchmark.scaling import Link, Measured, efficiency, table
from tests import runs
from tests.tiny import DIMS, XL_DIMS, make_unet, make_xl_unet

LINK = Link(bandwidth=1e9, latency=1e-4)
MEASURED = Measured(processes=2, size=10**8, step=1.25, alone=1.0, cpu=0.9, summed=0.1001, hop=1e-4)


def test_a_ring_sends_everything_but_its_own_share_twice():
    assert LINK.seconds(1, 10**9) == 0
    assert LINK.seconds(2, 10**9) == pytest.approx(1 + 1e-4)
    assert LINK.seconds(1000, 10**9) == pytest.approx(1.998 + 1e-4 * 9.966, rel=1e-4)
    assert efficiency(1.0, 10**9, LINK, 1000) == pytest.approx(1 / 2.999, rel=1e-3)


def test_what_joins_two_is_read_off_their_exchange():
    assert MEASURED.link().bandwidth == pytest.approx(1e9)
    assert MEASURED.link().latency == 1e-4
    assert MEASURED.efficiency == 0.8
    printed = table([MEASURED])
    assert "100.00 MB of gradients" in printed
    assert "1000: 0.83" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "dims"), [(make_unet, DIMS), (make_xl_unet, XL_DIMS)], ids=["1", "xl"]
)
def test_two_processes_are_measured(tmp_path, make, dims):
    make().save_pretrained(tmp_path / "unet")
    command = [sys.executable, "-m", "hn.benchmark.scaling", str(tmp_path / "unet"), "-n", "2"]
    command += ["--side", "8", "--batch", "1", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "found.json").read_text())
    parameters = 2 * sum(4 * dim * dim + 3 * dim for dim in dims)  # 1-2-1, with biases
    assert found["size"] == 4 * parameters
    assert found["alone"] > 0
    assert f"{found['size'] / 1e6:.2f} MB of gradients" in done.stdout
