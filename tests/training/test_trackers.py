"""What trackers get, read back from a real TensorBoard server and from wandb's own files."""

import json
import re
import resource
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest
import torch
from PIL import Image

import hn
from hn import cli
from hn.errors import OptionError
from hn.evaluation.report import tensorboard
from hn.training.telling.trackers import TensorBoard
from tests import runs
from tests.report import example

ACCEPTED = ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_FAILURE", "STATUS_UNKNOWN"]


@pytest.fixture(scope="module")
def tracked(model, pictures, tmp_path_factory):
    """A run that reports to both, without a network, and is evaluated."""
    folder = tmp_path_factory.mktemp("tracked")
    flags = runs.settings(
        model,
        pictures,
        folder,
        report_to=["tensorboard", "wandb"],
        validation_data_dir=pictures,
        validation_steps=3,
        validation_prompt=["a red star"],
        validation_inference_steps=2,
        dropout_structure=[0, 0.2, 0],
    )
    secret = "0123456789abcdef" * 2 + "01234567"
    runs.forget_accelerate()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", secret)
        assert runs.train_here(flags) == 0
    example.draw_grids(folder / "run/evaluation")
    for _ in range(2):  # the second takes the place of the first
        tensorboard.write(example.make_evaluation(), folder / "run", folder / "run/evaluation")
    return folder / "run", secret


@pytest.fixture(scope="module")
def ask(tracked):
    """Asks a TensorBoard server, which shows the run, for data."""
    command = [sys.executable, "-m", "tensorboard.main", "--load_fast=false", "--port=0"]
    with subprocess.Popen(
        [*command, f"--logdir={tracked[0].parent}"], stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        address = next(found[0] for line in lines if (found := re.search(r"http://\S+/", line)))

        def ask(path, **body):
            data = json.dumps(body).encode() if body else None
            headers = {"Content-Type": "application/json"}
            with urlopen(Request(f"{address}data/plugin/{path}", data, headers)) as answer:
                return json.load(answer)

        yield ask
        server.terminate()


def test_tensorboard_shows_the_curves(ask):
    tags = ask("scalars/tags")["run/tensorboard"]
    shown = {"loss", "learning_rate", "heldout_gain", "residual_ratio/24.k", "evaluation/gain"}
    assert shown <= set(tags)
    points = ask("scalars/scalars?run=run/tensorboard&tag=evaluation/gain")
    assert [step for _, step, _ in points] == list(example.STEPS)


def test_tensorboard_shows_how_much_is_added(ask, tracked):
    """Each width and side at both times; the means of its tokens are near its rms ratio."""
    tags = ask("histograms/tags")["run/tensorboard"]
    names = [f"{dim}.{side}" for dim in (16, 24, 32) for side in "kv"]
    assert sorted(tags) == [f"residual_ratio_by_token/{name}" for name in names]
    rows = [row for row in runs.metrics(tracked[0]) if "residual_ratio/24.v" in row]
    assert [row["step"] for row in rows] == [3, 6]
    for name in names:
        path = f"histograms/histograms?run=run/tensorboard&tag=residual_ratio_by_token/{name}"
        for (_, step, bins), row in zip(ask(path), rows, strict=True):
            assert step == row["step"]
            mean = sum((low + high) / 2 * count for low, high, count in bins)
            mean /= sum(count for _, _, count in bins)
            assert mean == pytest.approx(row[f"residual_ratio/{name}"], rel=0.25)


def test_tensorboard_shows_previews_and_the_sweep(ask):
    tags = ask("images/tags")["run/tensorboard"]
    assert sorted(tags) == [
        "evaluation/Prompts at strengths",
        "evaluation/Seeds of one prompt",
        "preview",
    ]
    previews = ask("images/images?run=run/tensorboard&tag=preview&sample=0")
    assert [one["step"] for one in previews] == [3, 6]


def test_tensorboard_compares_runs_by_their_last_numbers(ask, tracked):
    """One entry for the run, with its settings and what came out."""
    experiment = ask("hparams/experiment", experimentName="")
    infos = {info["name"] for info in experiment["hparamInfos"]}
    assert {"optimizer/learning_rate", "network/layer_structure", "training/seed"} <= infos
    groups = ask(
        "hparams/session_groups", startIndex=0, sliceSize=9, colParams=[], allowedStatuses=ACCEPTED
    )["sessionGroups"]
    assert len(groups) == 1
    assert groups[0]["hparams"]["optimizer/learning_rate"] == "1e-3"
    assert groups[0]["sessions"][0]["status"] == "STATUS_SUCCESS"
    found = {one["name"]["tag"]: one["value"] for one in groups[0]["metricValues"]}
    last = runs.metrics(tracked[0])[-1]
    assert set(found) == {"loss", "heldout_loss", "heldout_gain"}
    assert found["heldout_gain"] == pytest.approx(last["heldout_gain"])


def test_wandb_has_the_same_offline_and_nothing_private(tracked):
    folder, secret = tracked
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data = file.read_bytes()
    for word in ("heldout_gain", "residual_ratio_by_token/24.k", "optimizer/learning_rate"):
        assert word.encode() in data
    assert len([*folder.glob("wandb/offline-run-*/files/media/images/preview_*.png")]) == 2
    private = [secret, socket.gethostname() + "\x12", str(runs.ROOT), sys.executable, sys.argv[0]]
    assert [word for word in private if word.encode() in data] == []
    for path in folder.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


@pytest.mark.usefixtures("fresh_accelerate")
def test_trackers_and_what_is_measured_for_them_change_no_bit(model, pictures, tmp_path, tracked):
    flags = runs.settings(model, pictures, tmp_path, dropout_structure=[0, 0.2, 0])
    assert runs.train_here(flags) == 0
    assert runs.same_tensors(tmp_path / "run/run.pt", tracked[0] / "run.pt")


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_tracker_that_cannot_start_stops_nothing(model, pictures, tmp_path, capsys):
    """A file lies where the folder should be."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tensorboard").write_text("in the way")
    flags = runs.settings(model, pictures, tmp_path, report_to="tensorboard")
    assert runs.train_here(flags) == 0
    output = capsys.readouterr().out
    assert output.count("warning: tensorboard fails (") == 1
    # settings, six steps, the residual ratios and six histograms, and the start itself
    assert "tensorboard did not take 15 reports; metrics.jsonl has all numbers" in output
    assert len(runs.losses(tmp_path / "run")) == 6
    assert hn.load(tmp_path / "run/run.pt").provenance.step == 6


@contextmanager
def disk_of(size):
    """Nothing can be written past `size` bytes of a file, as on a full disk."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.SIG_IGN
    handler = signal.signal(signal.SIGXFSZ, ignored)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# TensorBoard writes in a thread of its own, which ends then
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_stops_nothing(tmp_path, capsys):
    tracker = TensorBoard(tmp_path / "tensorboard", 0)
    tracker.start()
    noise = Image.effect_noise((100, 100), 90).convert("RGB")
    with disk_of(20_000):
        for step in range(20):
            tracker.picture("noise", noise, step)
            tracker.log({"loss": 1.0}, step)
        tracker.histogram("values", torch.ones(3), 20)
        tracker.finish()
    output = capsys.readouterr().out
    assert output.count("warning: tensorboard fails (") == 1
    assert "tensorboard did not take " in output


def test_a_tracker_that_is_not_installed(model, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    flags = runs.settings(model, pictures, tmp_path, report_to=["tensorboard", "wandb"])
    assert runs.train_here(flags) == 2
    assert "report_to wandb needs the package wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("written", ['"wandb"', '["wandb"]', '["tensorboard", "wandb"]'])
def test_one_tracker_or_several_in_a_file(tmp_path, written):
    """A settings file of before has one, without brackets."""
    file = tmp_path / "mine.toml"
    file.write_text(f"[output]\nreport_to = {written}\n")
    trackers = cli.read_toml(file).output.report_to
    assert trackers[-1] == "wandb" and len(trackers) == written.count('"') // 2


@pytest.mark.parametrize("names", [["none", "wandb"], ["wandb", "wandb"]])
def test_trackers_that_contradict_each_other(names):
    with pytest.raises(OptionError, match="report_to must be trackers, each once, or none alone"):
        cli.parse(["--config", "demo", "--report_to", *names])
