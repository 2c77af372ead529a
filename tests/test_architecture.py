"""The rules of the house, read off the imports and the sources."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "hn").rglob("*.py"))
# Lower floors first. A module imports from its own floor's package and from lower floors only.
FLOORS = [
    {"hn.errors"},
    {"hn.config", "hn.storage", "hn.rng", "hn.demo", "hn.hub_access"},
    {"hn.hub_copies"},
    {"hn.limits"},
    {"hn.cli"},
    {"hn.network", "hn.benchmark.memory", "hn.benchmark.ops"},
    {"hn.diffusion"},
    {"hn.data"},
    {"hn.training", "hn.prepare", "hn.checkup"},
    {"hn.evaluation", "hn.hub"},
    {"hn.build", "hn.launch", "hn.web_ui_settings"},
    {"hn.benchmark"},
]
# `hn` names things lazily; the demo's model is made with diffusers alone and nothing imports it.
EXEMPT = {"hn"}


# What reads pickles, or runs a stranger's code, whatever it is called.
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE = (
    r"\bload_state\(|save_state\(|register_for_checkpointing|trust_remote_code"
    r"|weights_only\s*=\s*False|allow_pickle\s*=\s*True|unsafe_load|yaml\.load\(|(?<![.\w])(eval|exec)\("
)


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _floor(name: str) -> int | None:
    homes = [
        i for i, floor in enumerate(FLOORS) for home in floor if f"{name}.".startswith(f"{home}.")
    ]
    return homes[0] if homes else None


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_imports_lower_floors_only(path):
    name = _name(path)
    if name in EXEMPT:
        return
    floor = _floor(name)
    assert floor is not None, f"{name} has no floor"
    package = ".".join(name.split(".")[:2])
    for imported in _imports(path):
        if not imported.startswith("hn.") or f"{imported}.".startswith(f"{package}."):
            continue
        target = _floor(imported)
        assert target is None or target < floor, f"{name} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_heavy_libraries_stay_in_their_rooms(path):
    name = _name(path)
    roots = {imported.split(".")[0] for imported in _imports(path)}
    if name in (
        "hn",
        "hn.errors",
        "hn.config",
        "hn.limits",
        "hn.storage",
        "hn.cli",
        "hn.demo",
        "hn.demo.pictures",
    ):
        assert not roots & {"torch", "diffusers", "transformers", "datasets", "accelerate", "numpy"}
    if name.startswith("hn.network"):
        assert not roots & {"diffusers", "transformers", "datasets", "accelerate"}
    if not name.startswith(("hn.training", "hn.evaluation", "hn.build", "hn.launch")):
        assert "accelerate" not in roots


def test_foreign_files_are_read_in_one_place():
    """`torch.load` stands in the container module and in the demo's own stages only."""
    allowed = {"hn.network.container", "hn.demo.build", "hn.demo.text", "hn.demo.autoencoder"}
    for path in [*MODULES, *(ROOT / "tools").glob("*.py"), ROOT / "train_hypernetwork.py"]:
        source = path.read_text()
        for call in re.findall(r"torch\.load\([^\n]*", source):
            assert "weights_only=True" in call, f"{path}: {call}"
            assert _name(path) in allowed, path
        found = re.search(UNSAFE, source)
        assert found is None, f"{path}: {found}"
        assert not {it.split(".")[0] for it in _imports(path)} & PICKLERS, path
        assert "torch.load" not in _imports(path), path


def test_the_rule_would_be_broken_by_what_it_forbids():
    for line in ("accelerator.load_state(x)", "trust_remote_code=True", "weights_only = False"):
        assert re.search(UNSAFE, line), line


def test_modules_and_functions_stay_small():
    for path in MODULES:
        source = path.read_text()
        assert len(source.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 55, f"{path}: {node.name}"
    assert len((ROOT / "train_hypernetwork.py").read_text().splitlines()) <= 250


def test_the_files_of_the_tree_are_those_of_the_readme():
    """The README's file map names every module, recipe and tool in its folder, and no other."""
    readme = (ROOT / "README.md").read_text()
    file_map = readme.split("## Files")[1].split("```")[1]
    entries = re.findall(r"^(\w+/[\w/]*) +(.*(?:\n +.*)*)", file_map, re.MULTILINE)
    named = {
        folder: set(re.findall(r"[\w-]+(?=[,:.;\n]|$)", re.sub(r":[^;]*", "", text)))
        for folder, text in entries
    }
    tracked = subprocess.run(
        ["git", "ls-files", "hn", "tools", "accelerate_configs"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    present: dict[str, set[str]] = {}
    for path in map(Path, tracked):
        known = path.suffix in (".py", ".toml", ".yaml", ".sbatch") and path.stem != "__init__"
        if known and "model" not in path.parts:
            present.setdefault(f"{path.parent.as_posix()}/", set()).add(path.stem)
    assert {
        folder: names - {"toml", "yaml", "sbatch"} for folder, names in named.items()
    } == present


def test_ci_runs_the_commands_of_the_readme():
    """The two commands of the README's start stand in `.ci/run`, the first with another folder."""
    start = (ROOT / "README.md").read_text().split("## Start")[1].split("\n## ")[0]
    commands = re.findall(r"```bash\n(.*?)\n```", start, re.DOTALL)
    ci = (ROOT / ".ci/run").read_text()
    assert len(commands) == 2
    for command in commands:
        assert command in ci
