"""Runs as model repositories, over a hub of our own: what goes there, comes back, and fails."""

import json
import runpy
import shutil
import signal
import threading
import time
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard

import hn
from hn.config import HubConfig
from hn.errors import HubError, ModelError, OptionError
from hn.hub.checkpoints import fetch_checkpoint
from hn.hub.publisher import Patience, Publisher
from hn.hub.runs import SCRATCH, check_run_destination, push_run, read_settings
from hn.training.keeping.checkpoint import MANIFEST, fault, manifest
from hn.training.state import TrainingState
from hn.training.watching.signals import Stop
from tests import runs
from tests.hub_server import READER, STRANGER, WRITER

HUB = HubConfig(push_to_hub=True, hub_model_id="me/style")
ALL = HubConfig(push_to_hub=True, hub_model_id="me/style", hub_strategy="all")
SAVES = HubConfig(push_to_hub=True, hub_model_id="me/style", hub_strategy="every_save")
SECRET = "the secret caption of 3.png"


@pytest.fixture(scope="module")
def trained(model, pictures, tmp_path_factory):
    """A run of six steps with three checkpoints, pictures drawn and held-out pictures measured."""
    folder = tmp_path_factory.mktemp("trained")
    own = shutil.copytree(pictures, folder / "private set")
    (own / "3.txt").write_text(SECRET)
    (folder / "lines.txt").write_text("a picture of [filewords]")
    flags = runs.settings(
        model,
        own,
        folder,
        checkpointing_steps=2,
        template=folder / "lines.txt",
        validation_data_dir=pictures,
        validation_prompt=["a red star", "a `blue` | <heart>"],
        validation_strengths=[0, 1],
        validation_inference_steps=2,
        validation_steps=0,
    )
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    assert runs.train_here(flags) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def there(hub, revision="main"):
    return hub.files("models", "me/style", revision)


def messages(hub):
    return len(hub.asked("POST", "/commit/"))


def test_the_finished_hypernetwork_goes_with_its_card(hub, run):
    assert push_run(run, HUB) == f"{hub.url}/me/style"
    files = there(hub)
    assert sorted(files) == ["README.md", "config.toml", "preview.png", "run.pt", "run.safetensors"]
    assert files["run.pt"] == (run / "run.pt").read_bytes()
    assert files["preview.png"] == (run / "previews/step-00000006.png").read_bytes()
    assert hub.repositories["models", "me/style"].private
    assert not (run / SCRATCH).exists()


def test_the_card(hub, run):
    push_run(run, HubConfig(**{**vars(HUB), "hub_license": "mit"}))
    card = ModelCard(there(hub)["README.md"].decode())
    card.validate()
    data = card.data.to_dict()
    assert data["license"] == "mit"
    assert {"hypernetwork", "stable-diffusion"} <= set(data["tags"])
    assert data["hypernetwork"] == "run.safetensors"
    assert "base_model" not in data  # a folder here
    assert "![Prompts in rows, strengths in columns](preview.png)" in card.text
    assert "a red star\na `blue` | <heart>\n```" in card.text
    assert 'hn.load("me/style")' in card.text and "<hypernet:run:1>" in card.text
    assert "| ComfyUI | runs the same |" in card.text
    assert "| step | base model | with the hypernetwork | gain |" in card.text
    assert "| learning_rate | 1e-3 |" in card.text


def test_the_card_quotes_the_evaluation_but_no_single_picture(hub, run):
    report = {
        "checkpoints": [
            {"step": 4, "kind": "raw", "gain": 0.25, "drift": 0.5, "flags": ["overfitting"]},
            {"step": 2, "kind": "ema", "gain": 0.75, "drift": 0.125, "flags": [], "rank": 1},
        ],
        "pictures": [{"name": "3.png", "caption": SECRET}],
        "sweep": {"points": [{"strength": 0.5, "style": 0.25, "agreement": float("nan")}]},
        "recommendation": {"step": 2, "kind": "ema", "strength": 0.5, "reason": "It <b>gains</b>."},
    }
    (run / "evaluation").mkdir()
    (run / "evaluation/report.json").write_text(json.dumps(report))
    push_run(run, HUB)
    card = there(hub)["README.md"].decode()
    assert "Recommended: step 2 (average) at strength 0.5. It ?b?gains?/b?." in card
    assert (
        "| 1 | 2 | ema | 0.75 | 0.125 | none |\n| - | 4 | raw | 0.25 | 0.5 | overfitting |" in card
    )
    assert "| 0.5 | 0.25 | - | - | - |" in card
    assert "<hypernet:run:0.5>" in card
    assert SECRET not in card and "3.png" not in card


def test_a_report_that_cannot_be_read_is_named(hub, run, capsys):
    (run / "evaluation").mkdir()
    (run / "evaluation/report.json").write_text("{")
    push_run(run, HUB)
    assert "report.json, which cannot be read" in capsys.readouterr().err


def test_nothing_of_this_machine_goes_there(hub, run, trained):
    push_run(run, ALL)
    sent = b"".join(there(hub).values()) + b"".join(r.body for r in hub.requests)
    for secret in (str(trained.parent), "private set", "lines.txt", SECRET, "3.png", WRITER):
        assert secret.encode() not in sent, secret
    settings = there(hub)["config.toml"].decode()
    assert "resolution = [16]" in settings and "[hub]" not in settings


def test_the_base_model_is_named_by_its_id_only(hub, run):
    config = (run / "config.toml").read_text().splitlines()
    line = next(it for it in config if it.startswith("pretrained_model_name_or_path"))
    text = "\n".join(config).replace(line, 'pretrained_model_name_or_path = "them/base"')
    (run / "config.toml").write_text(text)
    push_run(run, HUB)
    data = ModelCard(there(hub)["README.md"].decode()).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("them/base", "adapter")


@pytest.mark.parametrize("hub_config", [HUB, SAVES, ALL], ids=["end", "every_save", "all"])
def test_pushing_again_uploads_nothing(hub, run, hub_config):
    push_run(run, hub_config)
    hub.requests.clear()
    push_run(run, hub_config)
    assert not hub.asked("PUT", "") and not messages(hub)


def test_every_checkpoint_is_a_commit(hub, run):
    push_run(run, SAVES)
    assert messages(hub) == 4
    folder = "checkpoints/step-00000004"
    stored = [path for path in there(hub) if path.startswith(folder)]
    assert stored == [f"{folder}/run-4.pt", f"{folder}/run-4.safetensors"]
    assert "Of the steps 2, 4, 6" in there(hub)["README.md"].decode()


def test_what_was_rotated_away_here_stays_there(hub, run):
    push_run(run, SAVES)
    shutil.rmtree(run / "checkpoints/step-00000002")
    push_run(run, SAVES)
    assert "checkpoints/step-00000002/run-2.pt" in there(hub)
    assert "Of the steps 2, 4, 6" in there(hub)["README.md"].decode()


def test_checkpoints_of_a_longer_run_before_are_removed(hub, run):
    push_run(run, ALL)
    for path in ("checkpoints/step-00000006", "run.pt", "run.safetensors"):
        shutil.rmtree(run / path) if path.startswith("check") else (run / path).unlink()
    push_run(run, ALL)
    assert not [path for path in there(hub) if "step-00000006" in path]
    card = ModelCard(there(hub)["README.md"].decode())
    assert card.data.to_dict()["hypernetwork"] == "checkpoints/step-00000004/run-4.safetensors"
    assert fetch_checkpoint("hub:me/style").name == "step-00000004"


def test_a_damaged_checkpoint_is_not_pushed(hub, run, capsys):
    weights = run / "checkpoints/step-00000004/run-4.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    push_run(run, ALL)
    assert "step-00000004 is not pushed: changed or missing: run-4.safet" in capsys.readouterr().out
    assert not [path for path in there(hub) if "step-00000004" in path]


def test_two_do_not_push_one_run_at_once(hub, run):
    hub.trouble = lambda method, path: 1.0 if "create" in path else None
    first = threading.Thread(target=push_run, args=(run, HUB))
    first.start()
    while not (run / SCRATCH).exists():
        time.sleep(0.01)
    with pytest.raises(HubError, match="being pushed by another process"):
        push_run(run, HUB)
    first.join()
    assert "run.pt" in there(hub)


def test_what_others_put_there_stays(hub, run):
    api = huggingface_hub.HfApi()
    api.create_repo("me/style", private=True)
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="me/style")
    push_run(run, HUB)
    assert there(hub)["notes.txt"] == b"mine"
    api.upload_file(path_or_fileobj=b"# My own", path_in_repo="README.md", repo_id="me/style")
    with pytest.raises(HubError, match="has a card that is not of a hypernetwork"):
        push_run(run, HUB)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("hf_unknown", "does not accept this token"),
        (READER, "role write"),
        (STRANGER, "must begin with your own name"),
        (None, "no token.*hf auth login"),
    ],
)
def test_a_destination_is_proven_before(hub, monkeypatch, token, words):
    huggingface_hub.HfApi().create_repo("me/style", private=True)
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=words) as caught:
        check_run_destination(HUB)
    assert token is None or token not in str(caught.value)


def test_a_public_repository_is_not_filled_by_default(hub, run):
    huggingface_hub.HfApi().create_repo("me/style", private=False)
    for act in (lambda: check_run_destination(HUB), lambda: push_run(run, HUB)):
        with pytest.raises(OptionError, match="is public and was to be private: nothing was upl"):
            act()
    push_run(run, HubConfig(**{**vars(HUB), "hub_public": True}))
    assert "run.pt" in there(hub)


def test_a_folder_that_is_no_run(hub, tmp_path, run):
    with pytest.raises(OptionError, match=r"has no config.toml"):
        push_run(tmp_path, HUB)
    for path in (run / "run.pt", run / "run.safetensors"):
        path.unlink()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(HubError, match="nothing to push"):
        push_run(run, HUB)
    assert not hub.requests


# What comes back.


def test_it_is_loaded_by_its_id(hub, run):
    push_run(run, ALL)
    expected = hn.load(run / "run.safetensors").tensors()
    found = hn.load("me/style").tensors()
    assert all((found[key] == value).all() for key, value in expected.items())
    fetched = hub.asked("GET", "/resolve/")
    assert [path.rpartition("/")[2] for path in fetched] == ["README.md", "run.safetensors"]
    assert hn.load("me/style/run.pt").provenance.step == 6
    assert hn.load("me/style/checkpoints/step-00000002/run-2.safetensors").provenance.step == 2


def test_the_tools_read_it_by_its_id(hub, run, tmp_path, monkeypatch, capsys):
    push_run(run, HUB)
    assert tool(monkeypatch, "inspect_hypernetwork", "me/style", "me/style/run.pt") == 0
    assert capsys.readouterr().out.count("name 'run', step 6") == 2
    assert tool(monkeypatch, "convert", "me/style", "-o", str(tmp_path / "x.pt")) == 0
    assert runs.same_tensors(run / "run.pt", tmp_path / "x.pt")


def test_the_tool_publishes_as_the_run_was_to_be(hub, run, monkeypatch, capsys):
    assert tool(monkeypatch, "push", str(run)) == 2
    assert "hub_model_id" in capsys.readouterr().err
    settings = '\n[hub]\nhub_model_id = "me/style"\nhub_strategy = "all"\n'
    text = (run / "config.toml").read_text().partition("[hub]")[0]
    (run / "config.toml").write_text(text + settings)
    assert tool(monkeypatch, "push", str(run), "--hub_license", "mit", "--hub_public") == 0
    assert capsys.readouterr().out.strip() == f"{hub.url}/me/style"
    assert not hub.repositories["models", "me/style"].private
    assert "license: mit" in there(hub)["README.md"].decode()
    assert "checkpoints/step-00000006/MANIFEST.json" in there(hub)
    monkeypatch.delenv("HF_TOKEN")
    assert tool(monkeypatch, "push", str(run)) == 8


def tool(monkeypatch, name, *arguments):
    path = str(runs.ROOT / f"tools/{name}.py")
    monkeypatch.setattr("sys.argv", [path, *arguments])
    return runpy.run_path(path)["main"]()


def test_a_revision_is_what_it_was(hub, run):
    push_run(run, SAVES)
    first = hub.repositories["models", "me/style"].revisions
    commit = list(first)[1]  # after the one that made the repository: step 2, and no card yet
    with pytest.raises(ModelError, match=r"no .safetensors and no .pt in its first folder"):
        hn.load("me/style", revision=commit)
    path = "checkpoints/step-00000002/run-2.safetensors"
    assert hn.load(f"me/style/{path}", revision=commit).provenance.step == 2
    assert hn.load(f"me/style@{commit}/{path}").provenance.step == 2
    with pytest.raises(HubError, match="no such revision"):
        hn.load("me/style", revision="v9")


def test_a_file_here_comes_first(hub, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    shutil.copy(run / "run.pt", tmp_path / "me/style")
    assert hn.load("me/style").provenance.name == "run"
    with pytest.raises(OptionError, match="revision 'main' is of a repository"):
        hn.load("me/style", revision="main")
    with pytest.raises(ModelError, match=r"cannot read me/other.pt"):
        hn.load("me/other.pt")
    (tmp_path / "runs/x").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"cannot read runs/x/y.pt"):
        hn.load("runs/x/y.pt")
    assert not hub.requests


def test_what_cannot_be_loaded(hub, run):
    with pytest.raises(HubError, match=r"me/style is no file here.*no such repository"):
        hn.load("me/style")
    api = huggingface_hub.HfApi()
    api.create_repo("me/style", private=True)
    for name in ("a.pt", "b.pt"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo=name, repo_id="me/style")
    with pytest.raises(ModelError, match=r"has 2 hypernetworks: name one, such as me/style/a.pt"):
        hn.load("me/style")
    with pytest.raises(ModelError, match=r"has no file 'c.pt'"):
        hn.load("me/style/c.pt")
    for named, words in (("../x.pt", "outside"), ("x.txt", "no file"), ("[", "cannot be read")):
        card = f"---\nhypernetwork: {named}\n---\n# x\n".encode()
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="me/style")
        with pytest.raises(ModelError, match=words):
            hn.load("me/style")


def test_without_a_connection_it_is_as_before(hub, run, capsys):
    push_run(run, HUB)
    hn.load("me/style")
    capsys.readouterr()
    hub.broken = 503
    assert hn.load("me/style").provenance.step == 6
    assert capsys.readouterr().err.count("as it was fetched before") == 1
    with pytest.raises(HubError, match="it answers 503"):
        hn.load("me/style/run.pt")


def test_a_checkpoint_comes_back_whole(hub, run):
    push_run(run, ALL)
    path = fetch_checkpoint("hub:me/style")
    assert path.name == "step-00000006" and fault(path) is None
    assert fetch_checkpoint("hub:me/style@main/step-00000002").name == "step-00000002"
    fetched = [it for it in hub.asked("GET", "/resolve/") if "00000004" in it]
    assert [it.rpartition("/")[2] for it in fetched] == ["MANIFEST.json"]
    weights = path / "run-6.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"changed or missing: run-6.safetensors"):
        fetch_checkpoint("hub:me/style")


@pytest.mark.parametrize(
    ("which", "kind", "words"),
    [
        ("hub:style", OptionError, "must be hub:owner/name"),
        ("hub:me/nothing", HubError, "no such repository"),
        ("hub:me/style", ModelError, "has no such checkpoint with what resuming needs.*has none"),
        ("hub:me/style/step-00000003", ModelError, "has no such checkpoint"),
        ("hub:me/style@v9", HubError, "no such revision"),
    ],
)
def test_a_checkpoint_that_is_not_there(hub, run, which, kind, words):
    push_run(run, SAVES)
    with pytest.raises(kind, match=f"resume_from_checkpoint '{which}': .*{words}"):
        fetch_checkpoint(which)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"artifact": "../../x"}, "artifact"), ({"step": "6"}, "step"), ({"optimizer": []}, "optim")],
)
def test_a_state_of_another_form_is_refused(hub, run, change, words):
    """Somebody else's: its manifest is right, what it says is not."""
    folder = run / "checkpoints/step-00000006"
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **change}))
    (folder / MANIFEST).write_text(json.dumps(manifest(folder), indent=1) + "\n")
    push_run(run, ALL)
    with pytest.raises(ModelError, match=f"state.json is not as we write it: {words}"):
        fetch_checkpoint("hub:me/style")


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_goes_on_from_the_hub_to_the_same_bits(hub, run, trained, model, tmp_path):
    push_run(run, ALL)
    config = str(trained / "config.toml")
    flags = ["--config", config, "--output_dir", str(tmp_path / "elsewhere")]
    flags += ["--resume_from_checkpoint", "hub:me/style/step-00000004"]
    assert runs.train_here(flags) == 0
    assert runs.same_tensors(trained / "run.pt", tmp_path / "elsewhere/run/run.pt")


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_goes_on_from_a_hypernetwork_of_the_hub(hub, run, model, pictures, tmp_path, capsys):
    push_run(run, HUB)
    flags = runs.settings(model, pictures, tmp_path / "on", max_train_steps=8)
    assert runs.train_here([*flags, "--hypernetwork_path", "me/style"]) == 0
    assert "going on from me/style at step 6" in capsys.readouterr().out


# While it trains.


@pytest.fixture
def stop():
    """The trainer's own, without a signal yet."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    it = Stop(Accelerator(cpu=True))
    it.requested()  # training began
    yield it
    for number, handler in before.items():
        signal.signal(number, handler)


QUICK = Patience(retries=(0.05, 0.05, 0.05), end=60, stopped=0.3)


def state_at(step):
    net = hn.Hypernetwork.create((8,))
    return TrainingState(net, torch.optim.SGD(net.parameters()), step)


def publisher(run, hub_config=ALL, patience=QUICK, every=2):
    return Publisher(
        lambda stopped: push_run(run, hub_config, stopped=stopped),
        folder=run,
        every=every,
        patience=patience,
    )


def test_it_pushes_in_the_background_and_waits_at_the_end(hub, run, stop, capsys):
    answers = threading.Event()
    hub.trouble = lambda method, path: answers.wait(20) and None
    it = publisher(run)
    for step in range(1, 7):
        it(state_at(step))  # waits for nothing: the hub does not answer
    answers.set()
    it.close(stop, finished=True)
    assert 1 <= it.notes["pushed"] <= 2 and it.notes["failed"] == 0  # the newest wins
    assert "push_command" not in it.notes
    assert f"published      {hub.url}/me/style" in capsys.readouterr().out
    assert fetch_checkpoint("hub:me/style").name == "step-00000006"
    assert "run.pt" in there(hub)


@pytest.mark.parametrize("trouble", [500, 503, 429, "cut"])
def test_what_fails_for_a_while_is_tried_again(hub, run, stop, capsys, trouble):
    left = [trouble, trouble]
    hub.trouble = lambda method, path: left.pop() if "/commit/" in path and left else None
    it = publisher(run, HUB, every=0)
    it.close(stop, finished=True)
    assert it.notes == {"pushed": 1, "failed": 2}
    assert capsys.readouterr().err.count("the upload failed") == 2
    assert "run.pt" in there(hub)


@pytest.mark.parametrize(("status", "words"), [(401, "does not accept"), (403, "no right to this")])
def test_what_cannot_work_is_said_with_what_to_do(hub, run, stop, capsys, status, words):
    hub.trouble = lambda method, path: status if "/commit/" in path else None
    it = publisher(run, HUB, every=0)
    it.close(stop, finished=True)
    assert (it.notes["pushed"], it.notes["failed"]) == (0, 1)
    assert words in it.notes["reason"]
    assert it.notes["push_command"] == f"python tools/push.py {run}"
    assert f"later: python tools/push.py {run}" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2])
def test_a_signal_shortens_the_waiting_and_a_second_ends_it(hub, run, stop, count):
    answers = threading.Event()
    hub.trouble = lambda method, path: answers.wait(20) and None
    it = publisher(run, patience=replace(QUICK, stopped=0.3 if count == 1 else 60))
    for _ in range(count):
        signal.raise_signal(signal.SIGTERM)
    it.close(stop, finished=False)
    assert it._thread.is_alive()
    assert it.notes["push_command"] and it.notes["pushed"] == 0
    answers.set()
    it._thread.join(20)
    assert not it._thread.is_alive()  # it leaves before the first file
    assert it.notes["pushed"] == 0 and not hub.asked("PUT", "")


def test_an_unfinished_run_is_not_published_at_the_end(hub, run, stop):
    it = publisher(run, HUB, every=0)
    it.close(stop, finished=False)
    assert not hub.requests and it.notes == {}


def test_rotation_takes_nothing_away_from_an_upload(hub, run):
    """The checkpoint goes while its first file is on its way."""

    def rotate(method, path):
        if method == "PUT":
            shutil.rmtree(run / "checkpoints/step-00000002", ignore_errors=True)

    hub.trouble = rotate
    push_run(run, ALL)
    assert fault(fetch_checkpoint("hub:me/style/step-00000002")) is None


def test_a_push_goes_on_where_the_hub_died(hub, run, monkeypatch, capsys):
    """Killed in the middle of a file, started again: the rest goes there, and only that."""
    died = []

    def die(method, path):
        if method == "PUT" and len(hub.asked("PUT", "")) == 3 and not died:
            died.append(path)
            return "die"
        return None

    hub.trouble = die
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", _no_longer(time.sleep))
    with pytest.raises(HubError, match=r"cannot be reached|closed"):
        push_run(run, ALL)
    assert died and not hub.running
    with pytest.raises(HubError, match="cannot be reached"):
        push_run(run, ALL)
    hub.start()
    hub.requests.clear()
    capsys.readouterr()
    assert tool(monkeypatch, "push", str(run), "-o", "me/style", "--hub_strategy", "all") == 0
    assert capsys.readouterr().out.strip().endswith(f"{hub.url}/me/style")
    assert fault(fetch_checkpoint("hub:me/style")) is None
    oids = [path.rpartition("/")[2] for path in hub.asked("PUT", "")]
    assert len(oids) == len(set(oids)) and died[0].rpartition("/")[2] in oids
    large = [it for it in there(hub) if it.endswith((".pt", ".safetensors"))]
    assert len(oids) == len({there(hub)[it] for it in large}) - 3


def _no_longer(sleep):
    return lambda seconds: sleep(min(seconds, 0.05))


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_that_could_not_publish_does_not_begin(hub, pictures, tmp_path, monkeypatch, capsys):
    """Before the base model, which is not there."""
    monkeypatch.delenv("HF_TOKEN")
    flags = runs.settings("nowhere", pictures, tmp_path, push_to_hub=True, hub_model_id="me/style")
    assert runs.train_here(flags) == 8
    assert "no token" in capsys.readouterr().err
    assert runs.status(tmp_path / "run")["exit_code"] == 8


def test_a_failing_upload_fails_no_run_and_no_token_is_anywhere(
    zygote, hub, model, pictures, tmp_path
):
    """Two processes, of which one pushes; the hub refuses, then does not."""
    hub.trouble = lambda method, path: 403 if "/commit/" in path else None
    flags = runs.settings(
        model,
        pictures,
        tmp_path,
        checkpointing_steps=2,
        report_to="tensorboard",
        validation_prompt=["a red star"],
        validation_inference_steps=1,
        push_to_hub=True,
        hub_model_id="me/style",
        hub_strategy="every_save",
    )
    ended = zygote.run(flags, tmp_path / "logs", world=2, HF_TOKEN=WRITER)
    assert ended.codes == [0, 0], ended.said
    folder = tmp_path / "run"
    status = runs.status(folder)
    assert status["state"] == "done"
    assert status["hub"]["pushed"] == 0 and 1 <= status["hub"]["failed"] <= 4
    assert status["hub"]["push_command"] == f"python tools/push.py {folder}"
    assert f"later: python tools/push.py {folder}" in ended.said
    assert len(hub.asked("POST", "/create")) <= 5  # at the start, and by one process only

    hub.trouble = lambda method, path: None
    push_run(folder, read_settings(folder).hub)
    assert len([path for path in there(hub) if path.endswith(".safetensors")]) == 4
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    written += [ended.said.encode(), *there(hub).values()]
    assert written and not [1 for content in written if WRITER.encode() in content]
