"""The web UI's Create tab, as a program."""

import ast

import pytest
import torch

import hn
from hn.network import container
from tests import golden
from tests.tools.conftest import run_process

FORWARD = golden.read_json("forward.json")
RAW = [
    name
    for name, entry in FORWARD.items()
    if name != "__stacks__" and entry["raw_initialisation"] and not name.startswith("real-")
]


def flags(loaded: dict, seed: int) -> list[str]:
    values = {
        "sizes": loaded["sizes"],
        "layer_structure": ", ".join(map(str, loaded["layer_structure"])),
        "activation_func": loaded["activation_func"] or "linear",
        "weight_initialization": loaded["weight_init"],
        "dropout_structure": ", ".join(map(str, loaded["dropout_structure"])),
        "seed": seed,
        "is_layer_norm": loaded["add_layer_norm"],
        "activate_output": loaded["activate_output"],
    }
    given: list[str] = []
    for name, value in values.items():
        if value is not False:
            items = [] if value is True else value if isinstance(value, list) else [value]
            given += [f"--{name}", *map(str, items)]
    return given


@pytest.mark.parametrize("name", RAW)
def test_a_seed_gives_the_web_uis_own_weights_and_values(run, name, tmp_path):
    entry = FORWARD[name]
    result = run(
        "create_hypernetwork", "new", "-o", tmp_path, *flags(entry["loaded"], entry["seed"])
    )
    assert result.returncode == 0, result.stderr
    stored = hn.load(golden.FOLDER / "files" / f"{name}.pt")
    created = hn.load(tmp_path / "new.pt")
    assert created.tensors().keys() == stored.tensors().keys()
    assert all(torch.equal(t, stored.tensors()[key]) for key, t in created.tensors().items())
    state, loaded = container.read(tmp_path / "new.pt"), entry["loaded"]
    assert state["layer_structure"] == loaded["layer_structure"]
    assert list(map(type, state["layer_structure"])) == list(map(type, loaded["layer_structure"]))
    assert state["weight_initialization"] == loaded["weight_init"]
    assert (state["step"], state["name"]) == (0, "new")


@pytest.mark.parametrize("case", golden.read_json("facts.json")["create"][:2], ids=str)
def test_the_fields_mean_what_they_mean_in_the_web_ui(run, case, tmp_path):
    """The others of the set are what it does to a dropout structure that is a list, or off."""
    given, stored = ast.literal_eval(case["given"]), case["stored"]
    loaded = {**stored, "sizes": [16], "weight_init": given["weight_init"], "add_layer_norm": False}
    assert run("create_hypernetwork", "c-re/ate", "-o", tmp_path, *flags(loaded, 0)).returncode == 0
    state = container.read(tmp_path / "c-reate.pt")
    assert {key: state[key] for key in stored} == stored


def test_the_real_process(tmp_path):
    result = run_process("create_hypernetwork", "my style!?", "-o", "new/folder", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    path = tmp_path / "new/folder/my style.pt"
    assert result.stdout.splitlines()[0] == "created new/folder/my style.pt"
    assert "ComfyUI    runs the same" in result.stdout
    net, x = hn.load(path), torch.randn(1, 2, 768)
    assert net.dims == (768, 320, 640, 1280)  # the web UI's default
    assert torch.equal(net(x, x)[0], x)  # and ours: it starts as the base model


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ("a/b\\c:d*e", "abcde"),
        ("../../evil", "....evil"),
        ("über_größe-1.5", "über_größe-1.5"),
        ("  spaced  ", "spaced"),
        ("x\n\x1b[2Jy", "x2Jy"),
    ],
)
def test_names_are_filtered_as_in_the_web_ui(run, asked, made, tmp_path):
    result = run("create_hypernetwork", asked, "-o", tmp_path, "--sizes", 8)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [f"{made}.pt"]
    assert hn.load(tmp_path / f"{made}.pt").provenance.name == made


@pytest.mark.parametrize("name", ["", "  ", "///", "..", "x" * 100_000, "ü" * 101])
def test_names_that_name_no_file_are_refused(run, name, tmp_path):
    result = run("create_hypernetwork", name, "-o", tmp_path, "--sizes", 8)
    assert result.returncode == 2
    assert "must have a letter or digit, and at most 200 bytes" in result.stderr
    assert len(result.stderr) < 500
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_overwritten_unasked(run, tmp_path):
    arguments = ["create_hypernetwork", "net", "-o", tmp_path, "--sizes", 8, "--seed"]
    assert run(*arguments, 0).returncode == 0
    before = (tmp_path / "net.pt").read_bytes()
    result = run(*arguments, 1)
    assert (result.returncode, "is there already" in result.stderr) == (2, True)
    assert (tmp_path / "net.pt").read_bytes() == before
    assert run(*arguments, 1, "--overwrite").returncode == 0
    assert (tmp_path / "net.pt").read_bytes() != before


def test_the_name_that_means_none_is_told(run, tmp_path):
    result = run("create_hypernetwork", "None", "-o", tmp_path, "--sizes", 8)
    assert "the name None means no hypernetwork" in result.stdout


@pytest.mark.parametrize(
    ("flag", "values", "code", "words"),
    [
        ("--layer_structure", ["1, 2"], 4, "must start and end with 1"),
        ("--layer_structure", ["1, nan, 1"], 4, "must be multipliers"),
        ("--layer_structure", ["1, inf, 1"], 4, "must be multipliers"),
        ("--layer_structure", ["1, two, 1"], 2, "invalid numbers value"),
        ("--layer_structure", [""], 2, "invalid numbers value"),
        ("--sizes", [8, 8], 4, "different positive widths"),
        ("--seed", [10**30], 4, "seed must have at most 63 bits"),
        ("--sizes", [0], 4, "different positive widths"),
        ("--activation_func", ["swoosh"], 4, "activation_func 'swoosh' is not known"),
        ("--weight_initialization", ["normal"], 4, "'normal' is not known"),
        ("--dropout_structure", ["0, 1, 0"], 4, "below 1"),
        ("--dropout_structure", ["0, 0.5"], 4, "one probability for each"),
    ],
)
def test_what_cannot_be_made_is_refused(run, flag, values, code, words, tmp_path):
    result = run("create_hypernetwork", "net", "-o", tmp_path, "--sizes", 8, flag, *values)
    assert result.returncode == code
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(run, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("create_hypernetwork", "net", "-o", tmp_path / "file", "--sizes", 8)
    assert (result.returncode, "cannot write" in result.stderr) == (5, True)
