"""The tool as people run it: a folder in, a folder and an account out."""

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from hn.data.pictures.images import read_folder
from hn.errors import DataError, OptionError, StorageError
from hn.prepare.output import OutputFolder
from hn.prepare.prepare import Preparer
from hn.prepare.settings import Settings
from tests import runs
from tests.prepare import drawn, tiny_blip
from tests.test_storage import file_size_limit

TOOL = [sys.executable, "tools/prepare_images.py"]
SMALL = {"width": 64, "height": 64}


@pytest.fixture
def source(tmp_path):
    """Landscape with a caption, portrait turned by EXIF, square, far too tall, and a text."""
    folder = tmp_path / "source"
    folder.mkdir()
    drawn.with_subject((300, 200), (230, 100), reach=40).save(folder / "a landscape.png")
    (folder / "a landscape.txt").write_text("blocks on blue\n", encoding="utf-8")
    drawn.save_turned(drawn.with_subject((300, 200), (60, 100), 40), folder / "b turned.jpg")
    drawn.plain((128, 128)).save(folder / "c square.webp")
    drawn.with_subject((50, 200), (25, 150), reach=20).save(folder / "d tall.png")
    return folder


def run(*arguments):
    return subprocess.run(
        [*TOOL, *map(str, arguments)],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
    )


@pytest.fixture
def run_here(monkeypatch, capsys):
    """The tool's own `main`, without the seconds that a process takes to import torch."""

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", [TOOL[1], *map(str, arguments)])
        code = runpy.run_path(str(runs.ROOT / TOOL[1]))["main"]()
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run_main


def prepare(source, output, *, overwrite=False, **changes):
    target = OutputFolder(output, source=source, overwrite=overwrite)
    return Preparer(Settings(**SMALL | changes), target).run(source)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_the_tool_makes_a_folder_that_can_be_trained_on(source, tmp_path):
    output = tmp_path / "new" / "output"
    flags = ["--width", 64, "--height", 48, "--focal_crop", "--flip", "--debug_pictures"]
    result = run(source, "-o", output, *flags)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == (
        "pictures: 8 of 4 sources; without a caption: 6; sources enlarged: 1; skipped: 0; "
        f"in {output}"
    )
    assert "preparing" in result.stderr
    names = [
        f"{number:05}-{part}-{stem}"
        for number, stem in enumerate(["a landscape", "b turned", "c square", "d tall"])
        for part in (0, 1)
    ]
    assert sorted(path.stem for path in output.glob("*.png")) == names
    assert all(Image.open(path).size == (64, 48) for path in output.glob("*.png"))
    assert (output / "00000-1-a landscape.txt").read_text() == "blocks on blue"
    assert len(list((output / "debug").iterdir())) == 4
    dataset = read_folder(output, "filename", setting="train_data_dir")
    assert dataset["caption"][:3] == ["blocks on blue", "blocks on blue", "b turned"]


def test_a_dry_run_says_what_would_be_made_and_writes_nothing(source, tmp_path):
    output = tmp_path / "output"
    (source / "bad.png").write_text("<html>")
    before = contents(source)
    flags = ["--width", 64, "--height", 64, "--split", "--flip", "--dry_run", "-o", output]
    result = run(source, *flags, "--blip_model", "not/there", "--caption_action", "append")
    assert result.returncode == 3
    assert "1 of 5 sources cannot be read; mend or remove those named above" in result.stderr
    assert not output.exists()
    assert contents(source) == before
    told, *lines = result.stdout.splitlines()
    assert told.startswith("without a caption, of ")
    assert lines[0] == (
        "a landscape.png -> 00000-0-a landscape.png: fill; 50,0 to 250,200 at scale 0.32; "
        "caption generated + existing"
    )
    assert lines[1].endswith("mirrored; caption generated + existing")
    assert lines[-1].endswith("skipped: 1; nothing written")
    made = prepare(source, output, split=True, flip=True)
    assert [line.split(" -> ")[1].split(":")[0] for line in lines[:-1]] == [
        record["file"] for record in made.outputs
    ]


def test_help_does_not_wait_for_torch():
    began = time.monotonic()
    result = run("--help")
    assert time.monotonic() - began < 2  # 0.1 s on a machine that does nothing else
    assert result.returncode == 0
    assert "--auto_crop_objective" in result.stdout
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", *TOOL[1:], "--help"],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
    ).stderr
    assert not {"torch", "cv2", "numpy", "PIL"} & set(loaded.replace("|", " ").split())


def test_unreadable_pictures_are_named_and_the_others_are_made(source, tmp_path, run_here):
    (source / "bad.png").write_text("<html>")
    result = run_here(source, "-o", tmp_path / "output", "--width", 64, "--height", 64)
    assert result.returncode == 3
    assert "skipped: bad.png: cannot be read" in result.stderr
    assert result.stderr.count("error:") == 1
    assert "pictures: 4 of 5 sources" in result.stdout
    written = manifest(tmp_path / "output")
    assert [skip["source"] for skip in written["skipped"]] == ["bad.png"]
    # it keeps its number, so that the others are called the same once it is mended
    assert [record["file"][:5] for record in written["outputs"]] == [
        "00000",
        "00001",
        "00003",
        "00004",
    ]


def test_without_opencv_the_tool_says_how_to_get_it(source, tmp_path):
    """As if it were not installed: None in sys.modules is how Python marks that."""
    code = "import sys, runpy; sys.modules['cv2'] = None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, TOOL[1], source, "-o", tmp_path / "output"]
    environment = {**os.environ, "PYTHONPATH": str(runs.ROOT)}
    settings = {"cwd": runs.ROOT, "capture_output": True, "text": True, "env": environment}
    result = subprocess.run([*command, "--focal_crop"], check=False, **settings)
    assert result.returncode == 2
    assert "focal_crop needs OpenCV" in result.stderr
    assert "pip install 'hn[prepare]'" in result.stderr
    assert not (tmp_path / "output").exists()


def test_the_same_input_gives_the_same_bytes(source, tmp_path):
    (source / "bad.png").write_text("<html>")
    every = {"split": True, "focal_crop": True, "auto_crop": True, "keep_original_size": True}
    for output in ("first", "second"):
        prepare(source, tmp_path / output, flip=True, debug_pictures=True, **every)
    first = contents(tmp_path / "first")
    assert len(first) > 30
    assert first == contents(tmp_path / "second")


def test_each_mode_writes_its_own_pictures_in_the_web_uis_order(source, tmp_path):
    account = prepare(
        source, tmp_path / "o", split=True, focal_crop=True, auto_crop=True, keep_original_size=True
    )
    modes = {}
    for record in account.outputs:
        modes.setdefault(record["source"], []).append(record["mode"])
    # 50 x 200 keeps a quarter in a square: split, count = ceil((256 - 12.8) / 51.2) = ceil(4.75)
    assert modes == {
        "a landscape.png": ["focal", "auto", "original"],
        "b turned.jpg": ["focal", "auto", "original"],
        "c square.webp": ["auto", "original"],
        "d tall.png": ["split"] * 5 + ["focal", "original"],
    }
    assert [skip["source"] for skip in account.skipped] == ["d tall.png"]
    assert "auto_crop_threshold 0.1 of the proportions of 50 x 200" in account.skipped[0]["reason"]
    assert Image.open(tmp_path / "o/00000-2-a landscape.png").size == (300, 200)
    assert Image.open(tmp_path / "o/00001-2-b turned.png").size == (200, 300)


def test_no_mode_that_applies_means_the_centre(source, tmp_path):
    account = prepare(source, tmp_path / "o", split=True)
    modes = [record["mode"] for record in account.outputs]
    assert modes == ["fill", "fill", "fill"] + ["split"] * 5
    assert account.outputs[0]["box"] == [50, 0, 250, 200]


def test_boxes_are_those_of_the_turned_picture(source, tmp_path):
    """The turned picture is 200 x 300, its subject at 100 across and 60 down."""
    account = prepare(source, tmp_path / "o", focal_crop=True, face_weight=0.0)
    record = account.outputs[1]
    left, top, right, bottom = record["box"]
    assert (left, right, bottom - top) == (0, 200, pytest.approx(200))
    assert top < 40
    assert record["found"]["edges"] > 5
    opened = ImageOps.exif_transpose(Image.open(source / "b turned.jpg"))
    again = opened.resize((64, 64), Image.Resampling.LANCZOS, box=(left, top, right, bottom))
    assert np.abs(np.asarray(again).astype(int) - pixels(tmp_path / "o" / record["file"])).max() < 2


def test_the_focal_crop_holds_the_subject_that_the_centre_crop_cuts(source, tmp_path):
    """The subject of the landscape reaches from 190 to 270; the centre crop ends at 250."""
    prepare(source, tmp_path / "centre")
    prepare(source, tmp_path / "focal", focal_crop=True)
    boxes = [manifest(tmp_path / name)["outputs"][0]["box"] for name in ("centre", "focal")]
    assert boxes[0][2] == 250
    assert boxes[1][2] >= 270
    assert boxes[1][0] <= 190


def test_a_flipped_twin_is_the_mirror_of_its_picture(source, tmp_path):
    account = prepare(source, tmp_path / "o", flip=True, keep_original_size=True)
    pairs = zip(account.outputs[::2], account.outputs[1::2], strict=True)
    for plain, twin in pairs:
        assert (plain["flipped"], twin["flipped"]) == (False, True)
        assert (plain["box"], plain["source"]) == (twin["box"], twin["source"])
        first, second = (pixels(tmp_path / "o" / record["file"]) for record in (plain, twin))
        assert np.array_equal(first, second[:, ::-1])


def test_transparency_is_laid_on_white(source, tmp_path):
    Image.new("RGBA", (64, 64), (255, 0, 0, 128)).save(source / "e.png")
    prepare(source, tmp_path / "o")
    assert pixels(tmp_path / "o/00004-0-e.png")[5, 5].tolist() == [255, 127, 127]


@pytest.mark.parametrize("action", ["ignore", "copy", "prepend", "append"])
def test_captions_with_a_model(source, tmp_path, action):
    """The landscape has a caption, the others have none."""
    model = tiny_blip.make(tmp_path / "blip")
    lengths = {"blip_min_length": 6, "blip_max_length": 9}
    account = prepare(
        source, tmp_path / "o", flip=True, blip_model=str(model), caption_action=action, **lengths
    )
    texts = [
        (tmp_path / "o" / record["file"]).with_suffix(".txt").read_text()
        for record in account.outputs
    ]
    assert set(" ".join(texts[2:]).split()) <= set(tiny_blip.WORDS)
    assert texts[2] != texts[3]  # the twin of the turned picture is described by itself
    generated = texts[0].replace("blocks on blue", "").split()
    assert bool(generated) == (action != "copy")
    wholes = {
        "ignore": " ".join(generated),
        "copy": "blocks on blue",
        "prepend": f"blocks on blue {' '.join(generated)}",
        "append": f"{' '.join(generated)} blocks on blue",
    }
    assert texts[0] == wholes[action]
    origins = {
        "ignore": ["generated"],
        "copy": ["existing"],
        "prepend": ["existing", "generated"],
        "append": ["generated", "existing"],
    }
    assert account.outputs[0]["caption"] == origins[action]


def test_captions_of_metadata_are_kept_each_in_a_line(source, tmp_path):
    row = {"file_name": "c square.webp", "text": ["one", "two"]}
    (source / "metadata.jsonl").write_text(json.dumps(row))
    prepare(source, tmp_path / "o")
    assert (tmp_path / "o/00002-0-c square.txt").read_text() == "one\ntwo"


@pytest.mark.parametrize(("action", "count"), [("ignore", 0), ("copy", 1), ("prepend", 1)])
def test_captions_without_a_model(source, tmp_path, action, count):
    prepare(source, tmp_path / "o", caption_action=action)
    assert len(list((tmp_path / "o").glob("*.txt"))) == count


def test_an_output_that_holds_something_is_replaced_only_on_request(source, tmp_path):
    output = tmp_path / "o"
    prepare(source, output, split=True, debug_pictures=True)
    before = contents(output)
    with pytest.raises(OptionError, match=r"is not empty.*--overwrite"):
        prepare(source, output)
    assert contents(output) == before
    (output / ".00004-0-e.png.321.tmp").write_bytes(b"")  # of a pass that was killed
    prepare(source, output, overwrite=True)
    assert sorted(contents(output)) == [
        "00000-0-a landscape.png",
        "00000-0-a landscape.txt",
        "00001-0-b turned.png",
        "00002-0-c square.png",
        "00003-0-d tall.png",
        "manifest.json",
    ]


def test_what_was_not_written_here_is_never_removed(source, tmp_path):
    output = tmp_path / "o"
    prepare(source, output)
    (output / "mine.png").write_bytes(b"")
    before = contents(output)
    with pytest.raises(OptionError, match=r"1 entries that were not written here \('mine.png'\)"):
        prepare(source, output, overwrite=True)
    assert contents(output) == before


def test_a_pass_that_makes_nothing_leaves_the_old_output(source, tmp_path):
    output, bad = tmp_path / "o", tmp_path / "bad"
    prepare(source, output)
    before = contents(output)
    bad.mkdir()
    (bad / "x.png").write_text("<html>")
    with pytest.raises(DataError, match=r"nothing can be made of the 1 sources:\n  x\.png: cannot"):
        prepare(bad, output, overwrite=True)
    assert contents(output) == before


@pytest.mark.parametrize("output", ["source", "source/../source", ".", "file"])
def test_outputs_that_are_refused(source, tmp_path, output):
    (tmp_path / "file").write_text("")
    before = contents(tmp_path)
    with pytest.raises(OptionError, match=r"is or holds the folder of the sources|is a file"):
        prepare(source, tmp_path / output, overwrite=True)
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_no_half_picture_and_no_manifest(source, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(source / "b noise.png")
    with file_size_limit(20_000), pytest.raises(StorageError, match="Free some space"):
        prepare(source, tmp_path / "o", keep_original_size=True)
    assert sorted(contents(tmp_path / "o")) == [
        "00000-0-a landscape.png",
        "00000-0-a landscape.txt",
    ]


@pytest.mark.parametrize("flags", [[], ["--dry_run"]])
def test_a_name_cannot_steer_the_terminal(tmp_path, run_here, flags):
    (tmp_path / "source").mkdir()
    drawn.plain((90, 30)).save(tmp_path / "source" / "a\x1b[2J.png")
    (tmp_path / "source" / "b\x1b[2J.png").write_text("<html>")
    flags = [*flags, "--width", 64, "--height", 64, "--auto_crop", "--keep_original_size"]
    result = run_here(tmp_path / "source", "-o", tmp_path / "o", *flags)
    assert result.returncode == 3
    assert "skipped: a?[2J.png: no size" in result.stderr
    assert "skipped: b?[2J.png: cannot be read" in result.stderr
    assert "\x1b[2J" not in result.stdout + result.stderr


def test_ctrl_c_ends_it_with_a_word_and_it_can_begin_again(tmp_path, run_here):
    """Ctrl-C comes after the first picture of 300."""
    folder, output = tmp_path / "source", tmp_path / "o"
    folder.mkdir()
    drawn.plain((64, 64)).save(folder / "0.png")
    for number in range(1, 300):
        (folder / f"{number}.png").symlink_to(folder / "0.png")

    def interrupt():
        while not list(output.glob("*.png")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    watch = threading.Thread(target=interrupt, daemon=True)
    watch.start()
    flags = ["-o", output, "--width", 64, "--height", 64]
    result = run_here(folder, *flags)
    watch.join()
    assert result.returncode == 75
    assert result.stdout.endswith("interrupted; --overwrite begins again\n")
    assert 0 < len(list(output.iterdir())) < 300
    assert not (output / "manifest.json").exists()
    assert run_here(folder, *flags, "--overwrite").returncode == 0


def test_long_names_are_cut(tmp_path):
    (tmp_path / "source").mkdir()
    drawn.plain((64, 64)).save(tmp_path / "source" / f"{'é' * 120}.png")
    account = prepare(tmp_path / "source", tmp_path / "o")
    assert account.outputs[0]["file"] == f"00000-0-{'é' * 75}.png"
    assert (tmp_path / "o" / account.outputs[0]["file"]).is_file()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--width", 100], "width must be a multiple of 8, at least 16; found 100"),
        (["--split", "--overlap", 0.95], "overlap must be from 0 to 0.9; found 0.95"),
        (["--overlap", 0.3], "overlap has no effect without --split"),
        (["--face_model", "x.onnx"], "face_model has no effect without --focal_crop"),
        (["--blip_beams", 3], "blip_beams has no effect without --blip_model"),
        (["--auto_crop_min_dim", 64], "auto_crop_min_dim has no effect without --auto_crop"),
        (["--auto_crop", "--auto_crop_min_area", 409601], "auto_crop has no size to choose from"),
        (["--focal_crop", "--face_weight", "nan"], "face_weight must not be negative; found nan"),
        (
            ["--blip_model", "x", "--blip_min_length", 60],
            "at most blip_max_length; found 60 and 48",
        ),
    ],
)
def test_settings_that_cannot_work(source, tmp_path, flags, words):
    from argparse import ArgumentParser

    from hn.prepare import settings

    parser = ArgumentParser()
    settings.add_flags(parser)
    with pytest.raises(OptionError) as caught:
        settings.from_flags(parser.parse_args(list(map(str, flags))))
    assert words in str(caught.value)


def test_a_setting_that_cannot_work_ends_the_tool_with_2(source, tmp_path):
    flags = ["--overlap", 0.3, "--height", 7, "--focal_crop", "--face_weight", 0]
    result = run(source, "-o", tmp_path / "o", *flags)
    assert result.returncode == 2
    assert result.stderr == (
        "error: height must be a multiple of 8, at least 16; found 7\n"
        "overlap has no effect without --split: give both or neither\n"
    )
    assert run(source, "-o", tmp_path / "o", "--caption_action", "add").returncode == 2


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(DataError, match=r"the input folder .* holds no picture"):
        prepare(tmp_path / "source", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_folder_that_cannot_be_written_ends_the_tool_with_5(source, tmp_path, run_here):
    (tmp_path / "file").write_text("")
    result = run_here(source, "-o", tmp_path / "file" / "below")
    assert result.returncode == 5
    assert "cannot write" in result.stderr
