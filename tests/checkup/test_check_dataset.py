"""tools/check_dataset.py: what it says and draws, and its verdict against the trainer's."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from hn import demo
from hn.checkup.findings import FINDINGS
from hn.checkup.wording import as_text
from hn.config import DataConfig
from hn.data.pictures.checks import check_pictures
from hn.data.pictures.images import load_examples
from hn.errors import DataError
from tests.checkup.drawn import checked, drawing, write
from tests.runs import ROOT
from tests.tools.conftest import run_process

TOOL = "check_dataset"


def mixed(folder):
    """Some good pictures, two that are equal, one that is small."""
    pictures = {
        "good__png": drawing(1),
        "same__png": drawing(1),
        "small__png": drawing(2, (40, 40)),
    }
    return write(folder, **pictures)


def test_a_usable_folder_is_reported_and_drawn(run, tmp_path):
    folder, output = mixed(tmp_path / "set"), tmp_path / "new" / "sheet.png"
    result = run(TOOL, folder, "--resolution", 64, "-o", output, "--max_pictures", 2)
    assert result.returncode == 0, result.stderr
    said = result.stdout
    assert said.startswith(f"{folder}: 3 pictures, 0 unusable; training would take them\n")
    assert "'good.png' = 'same.png'" in said
    assert "'small.png' 40 x 40, 1.60 times" in said
    assert f"2 of 3 pictures are on {output}" in result.stderr
    with Image.open(output) as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (664, 368))


def test_a_folder_that_training_refuses_ends_with_3_and_a_whole_report(tmp_path):
    folder = mixed(tmp_path / "set")
    (folder / "bad.png").write_bytes(b"<html>")
    (folder / "bad.txt").write_text("a page")
    (folder / "good.txt").unlink()
    flags = ["--json", "--tokenizer", demo.MODEL, "-o", tmp_path / "sheet.png"]
    result = run_process(TOOL, folder, *flags)
    assert result.returncode == 3
    assert result.stderr.splitlines()[-1].startswith(f"error: training would refuse '{folder}'")
    report = json.loads(result.stdout)
    assert [fault.split(":")[0].split(" ")[0] for fault in report["faults"]] == [
        "good.png",
        "bad.png",
    ]
    assert report["findings"]["unusable"]["pictures"] == ["bad.png", "good.png"]
    assert report["captions"]["unit"] == "tokens"
    assert report["settings"]["resolution"] == [512, 512]
    assert (tmp_path / "sheet.png").is_file()


def test_buckets_have_the_step_of_the_model(run, tmp_path):
    """16 for the demo's: its autoencoder halves twice, its UNet twice."""
    folder = mixed(tmp_path / "set")
    drawing(3, (160, 80)).save(folder / "wide.png")
    (folder / "wide.txt").write_text("wide")
    flags = [TOOL, folder, "--resize_mode", "bucket", "--resolution", 64, "--tokenizer", demo.MODEL]
    said = run(*flags, "--train_batch_size", 2).stdout
    assert "  sizes: 2, of 4 pictures\n" in said
    assert "  80 x 48         1  repeats pictures within a batch of 2\n" in said
    assert "  cut off: 4.2% on average, 16.7% at most ('wide.png', 160 x 80)\n" in said
    assert "       80 x 48   0.600    16.7%    0.0%       1.00  'wide.png' (160 x 80)\n" in said
    report = json.loads(run(*flags, "--no_upscale", "--json").stdout)
    assert report["settings"]["bucket_step"] == 16
    assert report["buckets"] == [
        {"size": [64, 64], "pictures": 2},
        {"size": [32, 32], "pictures": 1},
        {"size": [80, 48], "pictures": 1},
    ]
    assert [each["measures"]["bucket"] for each in report["pictures"]] == [
        [64, 64],
        [64, 64],
        [32, 32],
        [80, 48],
    ]
    assert "  88 x 40" in run(*flags, "--bucket_step", 8).stdout


def test_settings_that_cannot_be_end_with_2(run, tmp_path):
    folder = mixed(tmp_path / "set")
    (tmp_path / "old.png").write_bytes(b"precious")
    bad = {
        "resolution must be": ["--resolution", "100"],
        "max_pictures must be from 1": ["--max_pictures", "0"],
        "top must not be negative": ["--top", "-1"],
        "train_batch_size must be at least 1": ["--train_batch_size", "0"],
        "no_upscale: for resize_mode bucket; found crop": ["--no_upscale"],
        "resolution 32 x 32 holds no bucket of 64": [
            "--resize_mode",
            "bucket",
            "--resolution",
            "32",
        ],
        "must end with .png": ["-o", tmp_path / "sheet.jpg"],
        "would be trained on": ["-o", folder / "sheet.png"],
        "is there already": ["-o", tmp_path / "old.png"],
        "is not a regular expression": ["--filename_word_regex", "("],
        "invalid choice": ["--resize_mode", "fold"],
    }
    for message, flags in bad.items():
        result = run(TOOL, folder, *flags)
        assert (result.returncode, message in result.stderr) == (2, True), (flags, result.stderr)
    assert (tmp_path / "old.png").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.png", "set"]


def test_a_tokenizer_that_cannot_be_loaded_ends_with_4(run, tmp_path):
    result = run(TOOL, mixed(tmp_path / "set"), "--tokenizer", tmp_path)
    assert (result.returncode, "holds neither vocab.json nor tokenizer.json" in result.stderr) == (
        4,
        True,
    )


def shape(value):
    """The keys and types of JSON; of a list, those of its first element."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


FINDING = {"about": "str", "pictures": ["str"]}
SHAPE = {
    "folder": "str",
    "usable": "bool",
    "faults": ["str"],
    "settings": {
        "resolution": ["int"],
        "resize_mode": "str",
        "bucket_step": "NoneType",
        "max_aspect_ratio": "float",
        "no_upscale": "bool",
        "native_size": "bool",
        "train_batch_size": "int",
        "missing_caption": "str",
    },
    "buckets": [{"size": ["int"], "pictures": "int"}],
    "formats": {"PNG": "int"},
    "modes": {"RGB": "int"},
    "findings": {
        name: FINDING | {"pictures": ["str"] if name in ("unusable", "same pixels") else []}
        for name in (
            "unusable",
            "same pixels",
            "alike",
            "enlarged",
            "uniform",
            "blurry",
            "transparent",
            "elongated",
            "cropped",
            "padded",
            "distorted",
            "no caption",
            "empty caption",
            "long caption",
            "grey",
            "animated",
            "16 bits",
            "misnamed",
            "turned",
        )
    },
    "duplicates": {"same": [["str"]], "alike": []},
    "captions": {
        "count": "int",
        "missing": [],
        "empty": [],
        "repeated": [{"caption": "str", "pictures": ["str"]}],
        "unit": "str",
        "shortest": "int",
        "median": "float",
        "longest": "int",
        "limit": "NoneType",
        "long": [],
        "distinct_tags": "int",
        "tags": [{"tag": "str", "captions": "int"}],
        "in_every_caption": [],
        "without_picture": ["str"],
    },
    "unused": ["str"],
    "pictures": [
        {
            "name": "str",
            "caption": "str",
            "fault": "NoneType",
            "measures": {
                "width": "int",
                "height": "int",
                "kind": "str",
                "mode": "str",
                "deep": "bool",
                "frames": "int",
                "animated": "bool",
                "turned": "bool",
                "misnamed": "bool",
                "bucket": ["int"],
                "elongation": "float",
                "enlargement": "float",
                "cropped": "float",
                "padded": "float",
                "distortion": "float",
                "sharpness": "float",
                "contrast": "float",
                "colour": "float",
                "opacity": "float",
            },
            "flags": ["str"],
        }
    ],
}


def test_the_json_has_the_keys_and_types_that_programs_know(tmp_path):
    folder = write(
        tmp_path / "set", a__png=drawing(1), b__png=drawing(1), c__png=drawing(2), d__png=b""
    )
    (folder / "c.txt").write_text("drawing 1")
    (folder / "lost.txt").write_text("")
    report = checked(folder).as_dict()
    found = json.loads(json.dumps(report))
    assert shape(found) == SHAPE
    assert found["pictures"][3]["measures"] is None
    assert list(found["findings"]) == [finding.flag for finding in FINDINGS]


PNG = drawing(1)
BAD_FOLDERS = {  # what is done to a folder of one good picture, other settings, whether it is bad
    "good": (lambda folder: None, {}, False),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], {}, True),
    "only-captions": (lambda folder: (folder / "a.png").unlink(), {}, True),
    "no-caption": (lambda folder: (folder / "a.txt").unlink(), {}, True),
    "no-caption-needed": (
        lambda folder: (folder / "a.txt").unlink(),
        {"missing_caption": "empty"},
        False,
    ),
    "blank-caption": (lambda folder: (folder / "a.txt").write_text(" "), {}, True),
    "blank-caption-as-empty": (
        lambda folder: (folder / "a.txt").write_text(" "),
        {"missing_caption": "empty"},
        False,
    ),
    "latin-caption": (lambda folder: (folder / "a.txt").write_bytes(b"caf\xe9"), {}, True),
    "nul-caption": (lambda folder: (folder / "a.txt").write_bytes(b"a\0b"), {}, True),
    "huge-caption": (lambda folder: (folder / "a.txt").write_text("a" * 70_000), {}, True),
    "folder-caption": (
        lambda folder: ((folder / "a.txt").unlink(), (folder / "a.txt").mkdir()),
        {},
        True,
    ),
    "shared-caption": (lambda folder: PNG.save(folder / "a.webp"), {}, True),
    "empty-file": (lambda folder: (folder / "a.png").write_bytes(b""), {}, True),
    "cut-short": (
        lambda folder: (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:300]),
        {},
        True,
    ),
    "gif": (lambda folder: PNG.save(folder / "a.png", "GIF"), {}, True),
    "clear": (lambda folder: Image.new("RGBA", (9, 9)).save(folder / "a.png"), {}, True),
    "folder-picture": (
        lambda folder: (folder / "b.png").mkdir(),
        {"missing_caption": "empty"},
        True,
    ),
    "dangling-link": (
        lambda folder: (folder / "b.png").symlink_to("nowhere"),
        {"missing_caption": "empty"},
        True,
    ),
    "pipe": (lambda folder: os.mkfifo(folder / "b.png"), {"missing_caption": "filename"}, True),
    "name-not-utf-8": (
        lambda folder: (folder / "a.png").rename(folder / os.fsdecode(b"\xff.png")),
        {"missing_caption": "empty"},
        True,
    ),
    "hidden": (lambda folder: (folder / ".b.png").write_bytes(b""), {}, False),
    "one-pixel": (lambda folder: Image.new("RGB", (1, 1)).save(folder / "a.png"), {}, False),
    "misnamed": (lambda folder: PNG.save(folder / "a.png", "JPEG"), {}, False),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_the_verdict_is_the_trainer_s_and_so_are_its_reasons(case, tmp_path):
    spoil, settings, bad = BAD_FOLDERS[case]
    folder = write(tmp_path / "set", a__png=PNG)
    spoil(folder)
    data = DataConfig(train_data_dir=str(folder), resolution=(64,), **settings)
    reasons = ""
    try:
        check_pictures(load_examples(data))
    except DataError as error:
        reasons = str(error)
    report = checked(folder, **settings)
    assert (bool(reasons), report.usable) == (bad, not bad)
    assert all(fault in reasons for fault in report.faults)
    assert bool(report.faults) == bad
    text = as_text(report)
    assert text.encode()
    assert all(fault in text for fault in report.faults)
    assert json.dumps(report.as_dict())


def test_no_folder_is_a_refusal_too(tmp_path):
    report = checked(tmp_path / "nowhere")
    assert not report.usable
    assert "is not a folder" in as_text(report)


def test_the_text_names_a_few_and_says_how_many_more(tmp_path):
    folder = write(tmp_path / "set", **{f"{i}__png": drawing(i, (40, 40 + i)) for i in range(8)})
    text = as_text(checked(folder))
    assert "enlarged          8: smaller than the training size" in text
    assert text.count(" times\n") == 5
    assert text.count("... and 3 more") == 2  # of the enlarged, and of the table of crops


def test_the_table_of_crops_shows_what_loses_most(tmp_path):
    sizes = {"a__png": (96, 96), "b__png": (300, 96), "c__png": (128, 96)}
    folder = write(tmp_path / "set", **{key: drawing(1, size) for key, size in sizes.items()})
    lines = as_text(checked(folder)).splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith("picture"))
    rows = [line.split() for line in lines[start + 1 : start + 4]]
    assert [" ".join(row[:7]) for row in rows] == [
        "64 x 64 0.667 68.0% 0.0% 1.00",
        "64 x 64 0.667 24.7% 0.0% 1.00",
        "64 x 64 0.667 0.0% 0.0% 1.00",
    ]
    assert [row[7] for row in rows] == ["'b.png'", "'c.png'", "'a.png'"]
    assert "  cut off: 30.9% on average, 68.0% at most ('b.png', 300 x 96)" in lines


def test_help_comes_without_torch():
    code = "import sys, runpy; sys.argv = ['x', '--help']\n"
    code += "try: runpy.run_path('tools/check_dataset.py', run_name='__main__')\n"
    code += "except SystemExit: pass\n"
    code += "print({'torch', 'numpy', 'PIL', 'datasets'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.splitlines()[-1] == "set()"
