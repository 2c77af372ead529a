"""A row, and what it is checked in."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hn import cli
from tests import runs

Given = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """How a run ended, and what it said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Row:
    """One row of the matrix. `check` raises `AssertionError`."""

    number: int
    title: str
    check: Callable[["Scene"], None]


@dataclass
class Scene:
    """What a row is checked in: a folder, base models, runs that were made before.

    `hollow` is a base model without weights: whoever opens them ends with other words. `odd` and
    `trained` are made when they are asked for, once for all rows.
    """

    path: Path
    model: Path
    hollow: Path
    pictures: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    make_trained: Callable[["Scene"], Path]
    make_odd: Callable[["Scene"], tuple[Said, Path]]
    _folders: int = field(default=0)

    def run(self, model: Path | None = None, pictures: Path | None = None, **changes: Any) -> Said:
        """Run the script's own way from its flags to its exit code, in this process."""
        changes = {"max_train_steps": 2} | changes
        folder = changes.pop("output_dir", self.path / "out")
        flags = runs.settings(model or self.hollow, pictures or self.pictures, folder, **changes)
        return self.script(flags)

    def script(self, flags: list[str]) -> Said:
        """The same of given flags."""
        self.monkeypatch.setattr(sys, "argv", ["train_hypernetwork.py", *flags])
        self.monkeypatch.syspath_prepend(str(runs.ROOT))
        import train_hypernetwork

        self.capsys.readouterr()
        runs.forget_accelerate()
        try:
            code = train_hypernetwork.main(cli.parse_or_exit())
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self.capsys.readouterr()
        return Said(code, out, err)

    def folder(self, **files: bytes | str) -> Path:
        """Pictures: a good one, and files whose dots are written as two underscores."""
        self._folders += 1
        folder = self.path / f"set{self._folders}"
        folder.mkdir()
        write(folder, {"good.png": encoded(plain()), "good.txt": "a good one"})
        write(folder, {name.replace("__", "."): content for name, content in files.items()})
        return folder

    def trained(self) -> Path:
        """A copy of a finished run of 4 steps, with checkpoints of steps 2 and 4."""
        shutil.copytree(self.make_trained(self), self.path / "out/run", symlinks=True)
        return self.path / "out/run"

    def status(self) -> dict[str, Any]:
        """`status.json` of the run."""
        return json.loads((self.path / "out/run/status.json").read_text())


def stops(
    number: int,
    title: str,
    code: int,
    words: list[str],
    given: Callable[[Scene], Given],
) -> Row:
    """A row that ends with an exit code and words, and opens no weights."""

    def check(scene: Scene) -> None:
        said = scene.run(**given(scene))
        assert_stopped(said, code, words)
        status = scene.path / "out/run/status.json"
        if status.exists():
            assert json.loads(status.read_text())["exit_code"] == code

    return Row(number, title, check)


def assert_stopped(said: Said, code: int, words: list[str]) -> None:
    """It ended with one message that holds all the words, and no weights were opened."""
    text = said.err + (said.out if code == 2 else "")  # tyro has its own way
    assert said.code == code, text
    assert "Traceback" not in text
    assert "cannot be loaded" not in text, "the weights were opened"
    for word in words:
        assert word in text, (word, text)


def counted(
    number: int, title: str, about: str, kind: str, names: list[str], count: int | None = None
) -> Row:
    """A row of what stops nothing: said at the start, and kept in `status.json`."""

    def check(scene: Scene) -> None:
        said, folder = scene.make_odd(scene)
        assert said.code == 0, said.err
        found = runs.status(folder)["found"][about][kind]
        assert found["count"] == (len(names) if count is None else count)
        for name in names:
            assert any(name in it for it in found["names"]), found
            assert name in said.out
        assert found["what"] in said.out or found["names"][0] in said.out

    return Row(number, title, check)


def write(folder: Path, files: dict[str, bytes | str]) -> None:
    """Write files of these contents."""
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)


def plain(colour: Any = (200, 30, 30), size: tuple[int, int] = (20, 16)) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", size, colour)


def encoded(picture: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    """The bytes of its file."""
    buffer = BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()
