"""What is said of files; what it means is held in tests/network/test_anatomy.py."""

import json

import pytest
import torch

import hn
from hn.network import a1111, container, files
from hn.network.contents import Contents
from tests import golden
from tests.tools.conftest import run_process

STORED = sorted((golden.FOLDER / "files").glob("*.pt"))


@pytest.fixture
def net(tmp_path):
    net = hn.Hypernetwork.create(
        (8,), activation_func="relu", weight_initialization="XavierNormal", seed=0
    )
    net.describe(step=12, sd_checkpoint="0123456789", optional_info="one\ntwo")
    hn.save(net, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_the_real_process_shows_what_can_be_read(net, tmp_path):
    (tmp_path / "broken.pt").write_text("<html>")
    result = run_process("inspect_hypernetwork", "net.pt", "broken.pt", "net.pt", cwd=tmp_path)
    assert result.returncode == 4
    assert result.stdout.count("net.pt: 560 parameters in float32") == 2
    assert "error: broken.pt is not a .pt file: it is a web page" in result.stderr


def test_the_report_for_people(run, net):
    lines = run("inspect_hypernetwork", net).stdout.splitlines()
    assert lines[0] == f"{net}: 560 parameters in float32"
    assert lines[1] == "  structure  1, 2, 1; relu"
    trained = "  trained    name 'net', step 12, sd_checkpoint '0123456789'"
    assert lines[2] == trained + ", optional_info 'one\\ntwo'"
    assert lines[4].split()[:2] == ["8", "k"]
    assert lines[5].split()[-3:] == ["0", "of", "16"]
    assert [line.split()[0] for line in lines[6:] if line[2] != " "] == [
        "A1111",
        "Forge",
        "ComfyUI",
        "diffusers",
    ]


def test_every_golden_file_is_reported_in_json(run):
    result = run("inspect_hypernetwork", "--json", *STORED)
    assert result.returncode == 0, result.stderr
    reports = json.loads(result.stdout, parse_constant=pytest.fail)
    assert [report["file"] for report in reports] == list(map(str, STORED))
    for report, path in zip(reports, STORED, strict=True):
        contents = files.read(path)
        assert tuple(report["config"]["dims"]) == contents.config.dims
        assert len(report["modules"]) == 2 * len(contents.config.dims)
        assert sum(m["parameters"] for m in report["modules"]) == report["parameters"]
        assert all(0 <= m["rank"] <= m["dim"] and m["change"] >= 0 for m in report["modules"])
        assert [host["host"] for host in report["hosts"]] == [
            "A1111",
            "Forge",
            "ComfyUI",
            "diffusers",
        ]


def test_json_is_one_list_even_if_nothing_can_be_read(run, tmp_path):
    result = run("inspect_hypernetwork", "--json", tmp_path / "gone.pt")
    assert (result.returncode, json.loads(result.stdout)) == (4, [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_spoilt_files_are_reported(run, net, value):
    state = container.read(net)
    state[8][1]["linear.0.bias"][2] = value
    net.write_bytes(container.write(state))
    for form in ([], ["--json"]):
        result = run("inspect_hypernetwork", *form, net)
        assert result.returncode == 0
        assert "1 tensors hold NaN or infinity (8.v.linear.0.bias)" in result.stdout


def test_weights_that_overflow_name_their_file(run, net):
    state = container.read(net)
    state[8][0]["linear.0.weight"] = torch.full((16, 8), 1e300, dtype=torch.float64)
    net.write_bytes(container.write(state))
    result = run("inspect_hypernetwork", net)
    assert result.returncode == 4
    assert f"error: {net}: the weights do not fit into torch.float32" in result.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_files_own_precision_is_named(run, net, dtype):
    files.write(files.read(net).to(dtype), net)
    assert str(dtype).removeprefix("torch.") in run("inspect_hypernetwork", net).stdout


def test_keys_that_nobody_reads_are_named(run, net):
    net.write_bytes(container.write(container.read(net) | {"skip_connection": True}))
    assert "does not read ('skip_connection')" in run("inspect_hypernetwork", net).stdout


def test_the_remedy_helps(run, net):
    """What a report tells to do makes the host run it."""
    dropout = hn.Hypernetwork.create((8,), dropout_structure=(0, 0.3, 0), activation_func="mish")
    torch.save(a1111.to_dict(Contents.of(dropout), "x"), net)
    report = json.loads(run("inspect_hypernetwork", "--json", net).stdout)[0]
    outcomes = {host["host"]: host["outcome"] for host in report["hosts"]}
    assert (outcomes["A1111"], outcomes["ComfyUI"]) == ("refused", "computes something else")
    remedies = [remedy for host in report["hosts"] for remedy in host["remedies"]]
    assert any("convert.py --fix" in remedy for remedy in remedies)
    fixed = net.with_name("fixed.pt")
    run("convert", net, "-o", fixed, "--fix")
    report = json.loads(run("inspect_hypernetwork", "--json", fixed).stdout)[0]
    outcomes = {host["host"]: host["outcome"] for host in report["hosts"]}
    assert outcomes["A1111"] == outcomes["ComfyUI"] == "runs the same"
