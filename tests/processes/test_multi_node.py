"""Two machines: two network namespaces, joined by a virtual cable and by nothing else."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest

from tests import runs
from tests.test_distributed import launcher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NODES = {"hn-node0": "10.77.91.1", "hn-node1": "10.77.91.2"}


def _ip(*arguments):
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def nodes():
    """Namespaces with one address each, that know each other's names."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs ip (iproute2) and unshare (util-linux)")
    try:
        for name in NODES:
            _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    names = list(NODES)
    hosts = "127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in NODES.items())
    try:
        ends = ["hn-cable", "type", "veth", "peer", "name", "hn-cable", "netns", names[1]]
        _ip("-n", names[0], "link", "add", *ends)
        for name, address in NODES.items():
            folder = runs.Path("/etc/netns") / name  # what `ip netns exec` lays over /etc
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text(hosts)
            _ip("-n", name, "address", "add", f"{address}/30", "dev", "hn-cable")
            for device in ("lo", "hn-cable"):
                _ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in NODES:
            for pid in _ip("netns", "pids", name).split():
                os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "delete", name)
            shutil.rmtree(runs.Path("/etc/netns") / name, ignore_errors=True)


@contextmanager
def _machine(name, flags, *more):
    """The launcher on one of them, with one process."""
    rank = list(NODES).index(name)
    options = ["--num_processes", "2", "--machine_rank", str(rank), "--max_restarts", "3", *more]
    options += ["--main_process_ip", NODES["hn-node0"]]
    inside = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c"]
    inside += ['hostname "$0" && exec "$@"', name]
    command = [*inside, *launcher("multi_node_ddp", *options)]
    with runs.start(command, flags, GLOO_SOCKET_IFNAME="hn-cable") as process:
        yield process


def test_a_machine_is_killed_and_comes_back(nodes, model, pictures, tmp_path):
    changes = {"max_train_steps": 60, "checkpointing_steps": 5, "latent_sampling": "random"}
    alone = runs.settings(
        model, pictures, tmp_path / "alone", gradient_accumulation_steps=2, **changes
    )
    assert runs.run(runs.PYTHON, alone).returncode == 0
    flags = runs.settings(
        model, pictures, tmp_path, expect_world_size=2, resume_from_checkpoint="auto", **changes
    )
    run, (first, second) = tmp_path / "run", nodes
    with _machine(first, flags) as steady:
        with _machine(second, flags) as lost:
            runs.wait_for(run / "checkpoints/step-00000010/MANIFEST.json")
            for pid in _ip("netns", "pids", second).split():
                os.kill(int(pid), signal.SIGKILL)
            lost.communicate(timeout=30)
        assert not (run / "run.pt").exists()
        with _machine(second, flags) as back:
            _, error = back.communicate(timeout=300)
            assert back.returncode == 0, error
        out, error = steady.communicate(timeout=60)
        assert steady.returncode == 0, error
    assert "resumed from" in out
    difference = runs.largest_difference(run / "run.pt", tmp_path / "alone/run/run.pt")
    assert difference < 1e-5, difference
    assert runs.numbers(run, "loss") == pytest.approx(
        runs.numbers(tmp_path / "alone/run", "loss"), rel=1e-5
    )


def test_a_cut_cable_is_noticed_and_named(nodes, model, pictures, tmp_path):
    """Nothing comes any more, not even that the connection is closed."""
    first, second = nodes
    flags = runs.settings(
        model,
        pictures,
        tmp_path,
        max_train_steps=60,
        checkpointing_steps=5,
        process_timeout_s=10,
        resume_from_checkpoint="auto",
    )
    run = tmp_path / "run"
    with _machine(first, flags) as steady:
        with _machine(second, flags) as lost:
            runs.wait_for(run / "checkpoints/step-00000010/MANIFEST.json")
            _ip("-n", second, "link", "set", "hn-cable", "down")
            end = time.monotonic() + 40
            while runs.status(run)["state"] == "running":
                assert time.monotonic() < end
                time.sleep(0.1)
            status = runs.status(run)
            for pid in _ip("netns", "pids", second).split():
                os.kill(int(pid), signal.SIGKILL)
            lost.communicate(timeout=30)
        assert status["exit_code"] == 7
        assert "process 1 (hn-node1, pid" in status["reason"]
        assert "its machine is lost" in status["reason"]
        _ip("-n", second, "link", "set", "hn-cable", "up")
        with _machine(second, flags) as back:
            _, error = back.communicate(timeout=300)
            assert back.returncode == 0, error
        steady.communicate(timeout=60)
        assert steady.returncode == 0
    assert runs.status(run)["state"] == "done"
    assert len(runs.losses(run)) == 60
