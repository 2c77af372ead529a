"""The web UI's optimizer state beside a file to go on from, and what we leave for it."""

import hashlib
import shutil

import pytest
import torch

import hn
from hn.network import a1111, container, files, sidecar
from hn.network.contents import Contents
from tests import golden, runs
from tests.network.test_sidecar import web_ui_accepts

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
FORWARD = golden.read_json("forward.json")
STORED = sorted((golden.FOLDER / "files").glob("*.optim"))
OPTIMIZERS = {
    "AdamW": {},
    "SGD": {"optimizer_args": ["momentum=0.9"]},
    "Adafactor": {},
    "Adam": {"width_learning_rates": ["24=0.5", "32=2"]},  # the web UI's state has one group
}


@pytest.fixture(scope="module")
def whole(model, pictures, tmp_path_factory):
    """Runs of 6 steps, each with a file and its optimizer state at step 3."""
    from accelerate.state import AcceleratorState, GradientState

    folders = {}
    for name, changes in OPTIMIZERS.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        folder = tmp_path_factory.mktemp(name)
        flags = runs.settings(
            model,
            pictures,
            folder,
            optimizer=name,
            checkpointing_steps=3,
            save_optimizer_state=True,
            activation_func="mish",
            dropout_structure=[0, 0.3, 0],
            **changes,
        )
        assert runs.train_here(flags) == 0
        folders[name] = folder / "run"
    return folders


@pytest.fixture
def halfway(whole, tmp_path):
    """A copy of the AdamW run's file at step 3, with its state beside it."""
    for path in (whole["AdamW"] / "checkpoints/step-00000003").glob("run-3.pt*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "run-3.pt"


@pytest.fixture
def go_on(model, pictures, tmp_path):
    """Train from a file to step 6; returns the exit code."""

    def run(path, name="run", **changes):
        settings = {"dropout_structure": [0, 0.3, 0], **changes}
        flags = runs.settings(
            model, pictures, tmp_path, name=name, hypernetwork_path=path, **settings
        )
        return runs.train_here(flags)

    return run


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_from_a_file_equals_not_stopping(whole, go_on, tmp_path, name):
    """Steps are absolute, so batches, noise and dropout are those of the uninterrupted run."""
    path = whole[name] / "checkpoints/step-00000003/run-3.pt"
    settings = {"optimizer": name, **OPTIMIZERS[name]}
    assert go_on(path, save_optimizer_state=True, **settings) == 0
    for ending in ("pt", "safetensors", "pt.optim"):
        expected = (whole[name] / f"run.{ending}").read_bytes()
        assert (tmp_path / f"run/run.{ending}").read_bytes() == expected
    assert go_on(path, "without", adopt_optimizer="never", **settings) == 0
    assert not runs.same_tensors(whole[name] / "run.pt", tmp_path / "without/without.pt")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_file_of_a_run_is_accepted_by_the_web_ui(whole, name):
    found = sorted(whole[name].rglob("*.pt"))
    assert [path.stem for path in found] == ["run-3", "run-6", "run"]
    for path in found:
        assert web_ui_accepts(path)["optimizer_name"] == name
        assert container.read(path)["name"] == path.stem
        assert hn.load(path.with_suffix(".safetensors")).provenance.name == path.stem


def test_what_is_shared_has_no_dropout_and_what_is_resumed_keeps_it(whole):
    for path in [*whole["AdamW"].rglob("*.pt"), *whole["AdamW"].rglob("run*.safetensors")]:
        config = hn.load(path).config
        assert not config.use_dropout
        assert not any(config.dropout_structure)
    assert (
        '"dropout_structure": [\n'
        in (whole["AdamW"] / "checkpoints/step-00000003/state.json").read_text()
    )


@pytest.mark.parametrize("beside", STORED, ids=lambda path: path.stem)
def test_the_web_uis_state_is_adopted_iff_it_adopts_it(go_on, model, pictures, beside, tmp_path):
    path, loaded = beside.with_suffix(""), FORWARD[beside.name[: -len(".pt.optim")]]["loaded"]
    optimizer = sidecar.read(beside).optimizer_name
    settings = {"optimizer": optimizer, "dropout_structure": None, "max_train_steps": 10}
    settings |= OPTIMIZERS.get(optimizer, {})
    assert loaded["step"] < 10
    code = go_on(path, **settings)
    assert code == (0 if loaded["optimizer_state_loaded"] else 2)
    assert go_on(path, "never", adopt_optimizer="never", **settings) == 0
    if code == 0:
        adopted = not runs.same_tensors(tmp_path / "run/run.pt", tmp_path / "never/never.pt")
        assert adopted == bool(sidecar.read(beside).state["state"])  # plain SGD remembers nothing


def make_stale(path):
    """What happens to a file that is touched after its state was written."""
    state = container.read(path)
    path.write_bytes(container.write({**state, "optional_info": "touched"}))


def test_a_stale_state_stops_unless_told(halfway, go_on, whole, tmp_path, capsys):
    written_for = sidecar.short_hash(halfway)
    make_stale(halfway)
    assert go_on(halfway) == 2
    error = capsys.readouterr().err
    assert written_for in error
    assert hashlib.sha256(halfway.read_bytes()).hexdigest()[:10] in error
    assert "adopt_optimizer" in error
    assert go_on(halfway, "always", adopt_optimizer="always") == 0
    assert runs.same_tensors(tmp_path / "always/always.pt", whole["AdamW"] / "run.pt")
    capsys.readouterr()
    assert go_on(halfway, "never", adopt_optimizer="never") == 0
    assert "run-3.pt.optim is left alone, since adopt_optimizer is never" in capsys.readouterr().out


def test_the_old_rate_never_comes_back(halfway, go_on, tmp_path):
    """Nor does anything else of the old settings."""
    found = sidecar.read(sidecar.beside(halfway))
    for name, rate in (("tiny", 1e-12), ("huge", 1e6)):
        found.state["param_groups"][0] |= {"lr": rate, "initial_lr": rate, "weight_decay": rate}
        sidecar.beside(halfway).write_bytes(sidecar.to_bytes(found))
        assert go_on(halfway, name, learning_rate="1e-3:5, 1e-4") == 0
        rows = runs.metrics(tmp_path / name)
        rates = [row["learning_rate"] for row in rows if "loss" in row]
        assert rates == [1e-3, 1e-3, 1e-4]
    assert runs.same_tensors(tmp_path / "tiny/tiny.pt", tmp_path / "huge/huge.pt")


def test_another_optimizers_state_is_refused(halfway, go_on, capsys):
    assert go_on(halfway, optimizer="Adam") == 2
    error = capsys.readouterr().err
    assert "is the state of AdamW, but the optimizer is Adam" in error
    assert go_on(halfway, "bits", use_8bit_adam=True) == 2
    assert "the optimizer is AdamW8bit" in capsys.readouterr().err


def _wrong_shape(state):
    state["state"][1]["exp_avg"] = torch.zeros(7)


def _fewer(state):
    state["param_groups"][0]["params"].pop()
    del state["state"][max(state["state"])]


def _more(state):
    state["state"][99] = state["state"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_wrong_shape, "'exp_avg' of parameter 1 has the shape (7,), not (32,)"),
        (_fewer, "it is that of 23 tensors, not of 24"),
        (_more, "it has no parameter 99"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(halfway, go_on, capsys, change, words):
    beside = sidecar.beside(halfway)
    found = sidecar.read(beside)
    change(found.state)
    beside.write_bytes(sidecar.to_bytes(found))
    assert go_on(halfway) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "adopt_optimizer = never" in error


def test_a_state_that_lacks_what_is_asked_for_is_refused(halfway, go_on, capsys):
    assert go_on(halfway, optimizer_args=["amsgrad=True"]) == 2
    assert "has no 'max_exp_avg_sq', which optimizer_args ask for" in capsys.readouterr().err


def test_a_spoilt_state_file_is_refused(halfway, go_on, capsys):
    sidecar.beside(halfway).write_text("<html>")
    assert go_on(halfway) == 4
    error = capsys.readouterr().err
    assert "run-3.pt.optim is not a .pt file: it is a web page" in error
    assert "adopt_optimizer = never trains without it" in error


def test_always_needs_a_state(halfway, go_on, capsys):
    sidecar.beside(halfway).unlink()
    assert go_on(halfway, adopt_optimizer="always") == 2
    assert "there is no" in capsys.readouterr().err


def test_nothing_is_adopted_beside_nothing(halfway, go_on, whole, tmp_path):
    """Without the state, going on is another run; no word is said, since nothing is dropped."""
    sidecar.beside(halfway).unlink()
    assert go_on(halfway) == 0
    assert not runs.same_tensors(tmp_path / "run/run.pt", whole["AdamW"] / "run.pt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_func": "relu"}, "activation_func is 'relu', but"),
        ({"layer_structure": [1, 3, 1]}, "has (1, 2, 1), which stays: leave layer_structure out"),
        ({"dims": [24]}, "dims is (24), but"),
        ({"is_layer_norm": True}, "is_layer_norm is True, but"),
        ({"activate_output": True}, "activate_output is True, but"),
    ],
)
def test_settings_that_the_file_overrides_are_refused(halfway, go_on, capsys, changes, words):
    assert go_on(halfway, **changes) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["learning_rate", "clip_grad_value"])
def test_stages_that_are_over_at_the_files_step_are_refused(halfway, go_on, capsys, name):
    assert go_on(halfway, **{name: "1e-3:2, 1e-4:3"}) == 2
    assert f"{name} '1e-3:2, 1e-4:3': no stage is left after step 3" in capsys.readouterr().err


def test_settings_that_the_file_has_too_are_welcome(halfway, go_on):
    same = {"activation_func": "mish", "layer_structure": [1, 2, 1], "dims": [16, 24, 32]}
    assert go_on(halfway, **same) == 0


def test_a_spoilt_file_to_go_on_from_is_named(halfway, go_on, capsys):
    state = container.read(halfway)
    state[16][0]["linear.0.bias"][0] = float("nan")
    halfway.write_bytes(container.write(state))
    assert go_on(halfway, adopt_optimizer="never") == 4
    assert f"{halfway}: the weights are spoilt" in capsys.readouterr().err


@pytest.mark.parametrize("from_file", [False, True])
def test_where_it_will_run_is_said_before_the_base_model_is_loaded(
    pictures, tmp_path, capsys, from_file
):
    """The base model is not there, so that nothing after it can speak."""
    changes = {"activation_func": "silu"}
    if from_file:
        net = hn.Hypernetwork.create((16,), activation_func="silu", dropout_structure=(0, 0.3, 0))
        (tmp_path / "old.pt").write_bytes(a1111.to_bytes(Contents.of(net), "old"))
        changes = {"hypernetwork_path": tmp_path / "old.pt"}
    flags = runs.settings(tmp_path / "gone", pictures, tmp_path, **changes)
    assert runs.train_here(flags) == 4
    out = capsys.readouterr().out.splitlines()
    assert ("going on from" in out[0]) == from_file
    heading = out.index("where run.pt will run:")
    assert out[heading + 1] == "  A1111      runs the same"
    assert "  ComfyUI    refused" in out
    assert any("it knows no activation 'silu'" in line for line in out)
    assert not any("dropout" in line for line in out)  # what is shared has none


def test_the_base_models_file_is_noted(model, pictures, tmp_path):
    (tmp_path / "v1-5.safetensors").write_bytes(b"a base model")
    flags = runs.settings(
        model,
        pictures,
        tmp_path,
        max_train_steps=1,
        sd_checkpoint_file=tmp_path / "v1-5.safetensors",
    )
    assert runs.train_here(flags) == 0
    for path in (tmp_path / "run").rglob("run*.pt"):
        provenance = files.load(path).provenance
        assert provenance.sd_checkpoint == hashlib.sha256(b"a base model").hexdigest()[:10]
        assert provenance.sd_checkpoint_name == "v1-5"
        assert str(tmp_path) not in str(provenance)


def test_without_its_file_the_base_model_is_noted_by_name(whole, model):
    provenance = files.load(whole["SGD"] / "run.pt").provenance
    assert (provenance.sd_checkpoint, provenance.sd_checkpoint_name) == (None, model.name)


def test_a_base_models_file_that_is_not_there_is_found_before_it_is_loaded(
    pictures, tmp_path, capsys
):
    flags = runs.settings(tmp_path / "gone", pictures, tmp_path, sd_checkpoint_file="gone.ckpt")
    assert runs.train_here(flags) == 4
    assert "cannot read gone.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("adopt", ["always", "never"])
def test_adopting_without_a_file_is_refused(model, pictures, tmp_path, adopt):
    from hn.errors import OptionError

    with pytest.raises(OptionError, match="adopt_optimizer is for the file"):
        runs.train_here(runs.settings(model, pictures, tmp_path, adopt_optimizer=adopt))


def test_settings_that_an_adopted_state_was_made_with_are_not_dropped_silently(
    whole, go_on, tmp_path, capsys
):
    """The web UI brings them back with the state; here the present ones hold, and that is said."""
    path = whole["SGD"] / "checkpoints/step-00000003/run-3.pt"
    assert go_on(path, optimizer="SGD") == 0
    assert "made with momentum 0.9, and goes on with momentum 0" in capsys.readouterr().out
    assert go_on(path, name="as_before", optimizer="SGD", optimizer_args=["momentum=0.9"]) == 0
    assert "made with" not in capsys.readouterr().out
