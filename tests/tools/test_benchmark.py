"""The benchmark as a tool: its table, its numbers, its refusals."""

import json

import pytest


@pytest.mark.usefixtures("fresh_accelerate")
def test_prints_a_table_and_writes_its_numbers(run, tmp_path):
    path = tmp_path / "found.json"
    small = ["tiny", "--resolution", "32", "--batch", "1", "--rounds", "1", "--only", "hn"]
    finished = run("benchmark", *small, "--loop", "--json", path)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split("|")[1].strip() for line in lines[:4]] == ["", "---", "webui", "hn"]
    assert lines[4].startswith("the script's loop: ")
    found = json.loads(path.read_text())
    assert (found["model"], found["resolution"], found["dims"]) == ("tiny", 32, [64, 96, 128])
    webui, ours = found["rows"]
    assert webui["speed_up"] == 1.0
    assert ours["gradient_difference"] < 1e-5
    assert ours["syncs"] == 0 < webui["syncs"]
    assert ours["ops"] < webui["ops"]
    assert len(ours["rounds"]) == 1
    assert min(ours["mfu"], found["matmul_tflops"], found["loop"]["share"]) > 0
    assert len(found["loop"]["steps"]) == len(found["loop"]["updates"]) == 40


def test_counts_without_a_machine_for_it(run, tmp_path):
    path = tmp_path / "found.json"
    flags = ["tiny-xl", "--count", "--only", "hn", "--json", path]
    finished = run("benchmark", *flags)
    assert finished.returncode == 0, finished.stderr
    assert "| hn | – | – | – |" in finished.stdout
    webui, ours = json.loads(path.read_text())["rows"]
    assert webui["flops_per_image"] > ours["flops_per_image"] > 0
    assert webui["saved"] < ours["saved"]  # which computes nothing again
    assert ours["seconds"] is None


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["tiny", "--only", "loro"], 2, "did you mean 'lora'?"),
        (["tiny", "--rounds", "0"], 2, "rounds must be at least 1; found 0"),
        (["tiny", "--dims", "64,65"], 2, "dims must be all, text, or some of 64,96,128"),
        (["tiny", "--batch", "1000000", "--only", "hn"], 5, "Lower --batch or --resolution"),
    ],
)
def test_says_what_cannot_be_measured(run, flags, code, message):
    finished = run("benchmark", *flags)
    assert finished.returncode == code
    assert message in finished.stderr
