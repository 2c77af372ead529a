"""Running tools as people do, in processes of their own or without the seconds these take."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import runs

Run = Callable[..., runs.Finished]


def run_process(name: str, *arguments: Any, cwd: Path = runs.ROOT) -> runs.Finished:
    """`python tools/NAME.py ARGUMENTS`."""
    return subprocess.run(
        [sys.executable, runs.ROOT / f"tools/{name}.py", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The tool's own `main`, in this process."""

    def run_main(name: str, *arguments: Any) -> runs.Finished:
        path = runs.ROOT / f"tools/{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        capsys.readouterr()
        try:
            code = runpy.run_path(str(path))["main"]()
        except SystemExit as ended:  # argparse
            code = ended.code
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, code, out, err)

    return run_main
