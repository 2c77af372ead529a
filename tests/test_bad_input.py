"""The matrix of bad input: 74 rows, each through the script's own `main`.

What stops a run does so with its exit code, the name of what is wrong and a remedy, before weights
are opened; what does not is said at the start, counted, and kept in `status.json`.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import runs, tiny
from tests.bad_input import captions, files, pictures, running, settings
from tests.bad_input.row import Row, Said, Scene, encoded, plain, write

ROOMS = (settings, pictures, captions, files, running)
ROWS: list[Row] = sorted((row for room in ROOMS for row in room.ROWS), key=lambda it: it.number)
MADE: dict[str, object] = {}  # what all rows share, made by the first that asks

pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded"),
]


@pytest.fixture(scope="module")
def hollow(model, tmp_path_factory) -> Path:
    """The model without weights: what stands in their files cannot be read."""
    folder = tmp_path_factory.mktemp("hollow") / model.name
    for source in model.rglob("*"):
        target = folder / source.relative_to(model)
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            spoilt = source.suffix in (".safetensors", ".bin")
            target.write_bytes(b"nobody reads this" if spoilt else source.read_bytes())
    return folder


@pytest.fixture
def scene(model, hollow, tmp_path, tmp_path_factory, capsys, monkeypatch) -> Scene:
    """An empty one, that shares `trained` and `odd` with others."""
    shared = tmp_path_factory.getbasetemp() / "shared_rows"
    return Scene(
        path=tmp_path,
        model=model,
        hollow=hollow,
        pictures=small_set(shared),
        capsys=capsys,
        monkeypatch=monkeypatch,
        make_trained=lambda scene: once("trained", lambda: make_trained(scene, shared)),
        make_odd=lambda scene: once("odd", lambda: make_odd(scene, shared)),
    )


def once(name, make):
    """What `make` gave the first time."""
    if name not in MADE:
        MADE[name] = make()
    return MADE[name]


def small_set(shared: Path) -> Path:
    """Four pictures."""
    folder = shared / "set"
    return folder if folder.exists() else tiny.make_pictures(folder, 4)


def make_trained(scene: Scene, shared: Path) -> Path:
    """A finished run of 4 steps, with checkpoints of steps 2 and 4."""
    settings = {"output_dir": shared / "trained", "checkpointing_steps": 2, "max_train_steps": 4}
    assert scene.run(scene.model, **settings).code == 0
    return shared / "trained/run"


def make_odd(scene: Scene, shared: Path) -> tuple[Said, Path]:
    """A run over all that is odd and stops nothing."""
    folder = shared / "odd"
    folder.mkdir()
    write(folder, odd_files())
    changes = {"missing_caption": "empty", "on_bad_image": "drop", "max_train_steps": 1}
    batch = {"train_batch_size": 2, "gradient_accumulation_steps": 7}
    said = scene.run(scene.model, folder, output_dir=shared / "out", **changes, **batch)
    return said, shared / "out/run"


def odd_files() -> dict[str, bytes | str]:
    """One file for each row, ten of them pictures that can be used, and one with a twin."""
    turned, odd = Image.Exif(), Image.Exif()
    turned[0x0112], odd[0x0112] = 6, 99
    shades = np.linspace(0, 65535, 320, dtype=np.uint16).reshape(16, 20)
    frames = [plain((0, 0, 255)), plain((255, 0, 0))]
    found = {
        "misnamed.png": encoded(plain((1, 2, 3)), "JPEG"),
        "CMYK.jpg": encoded(Image.new("CMYK", (20, 16), (9, 8, 7, 6)), "JPEG"),
        "P.png": encoded(plain((4, 5, 6)).quantize(2)),
        "1.png": encoded(Image.new("1", (20, 16), 1)),
        "L.png": encoded(Image.new("L", (20, 16), 77)),
        "deep.png": encoded(Image.fromarray(shades)),
        "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "turned.jpg": encoded(plain((7, 8, 90)), "JPEG", exif=turned),
        "odd.jpg": encoded(plain((70, 8, 9)), "JPEG", exif=odd),
        "it.png": encoded(plain((9, 90, 9))),
        "twin.bmp": encoded(plain((9, 90, 9)), "BMP"),
    }
    captions = {Path(name).stem + ".txt": "a star" for name in found}
    del captions["deep.txt"]  # missing
    captions |= {"turned.txt": " \n", "L.txt": "a star " * 30, "it.txt": "a <|endoftext|> star"}
    return {**found, **captions, "broken.png": b"<html>", "broken.txt": "x", "lost.txt": "x"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number}-{row.title}")
def test_row(row: Row, scene: Scene) -> None:
    row.check(scene)


def test_there_are_74_rows() -> None:
    assert {row.number for row in ROWS} == set(range(1, 75))


def test_what_is_left_out_is_the_same_when_a_run_goes_on(scene: Scene) -> None:
    """And what was left out before and is mended since is another set."""
    folder = scene.folder(bad__png=b"<html>", bad__txt="a star", b__png=encoded(plain("blue")))
    (folder / "b.txt").write_text("a blue one")
    changes = {"pictures": folder, "on_bad_image": "drop", "checkpointing_steps": 1}
    assert scene.run(scene.model, **changes).code == 0
    whole = (scene.path / "out/run/run.pt").read_bytes()
    again = {**changes, "resume_from_checkpoint": scene.path / "out/run/checkpoints/step-00000001"}
    assert scene.run(scene.model, **again).code == 0
    assert (scene.path / "out/run/run.pt").read_bytes() == whole
    assert runs.status(scene.path / "out/run")["found"]["train"]["dropped"]["count"] == 1
    (folder / "bad.png").write_bytes(encoded(plain("green")))
    said = scene.run(scene.model, **again)
    assert said.code == 2
    assert "of the pictures, new: 1 ('bad.png')" in said.err
