"""Spoilt files by the thousand: each is read or refused, and nothing else happens.

The short versions are of hundreds; `-m slow` reads as many as the promise names, in minutes.
"""

import io
import tempfile
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

from hn.data.pictures.checks import check_pictures
from hn.data.pictures.images import read_folder, scan_folder
from hn.data.tally import Tally
from hn.network import a1111, container, native
from hn.network.contents import Contents
from hn.network.module import Hypernetwork
from tests.bad_input.files import Evil, flat, saved
from tests.bad_input.row import encoded
from tests.fuzzing import Tally as Fuzzed
from tests.fuzzing import changed, changed_pickle, fuzz_hypernetworks, timed, watched

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = 150
CANARY = Path(tempfile.gettempdir()) / "hn-canary-that-nothing-makes"
CONTENTS = Contents.of(Hypernetwork.create((8, 16), activation_func="relu", seed=0))
STATE = a1111.to_dict(CONTENTS, "net")
FORMS = {
    "zip": (container.write(STATE), changed),
    "zip of torch": (saved(STATE), changed),
    "pickle": (container.write(STATE), changed_pickle),
    "flat": (flat(STATE), changed),
    "safetensors": (native.to_bytes(CONTENTS, "net"), changed),
    "evil zip": (saved(STATE | {"x": Evil(CANARY)}), changed_pickle),
    "evil flat": (flat(STATE | {"x": Evil(CANARY)}), changed),
}
long = pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])


@pytest.mark.parametrize("count", [SHORT, long])
@pytest.mark.parametrize("form", FORMS)
def test_hypernetworks(form, count, tmp_path):
    data, change = FORMS[form]
    tally = fuzz_hypernetworks(data, change, count, tmp_path / "net.pt")
    print(form, tally)
    assert tally.accepted + tally.refused == count
    assert tally.happened == []
    assert not CANARY.exists()
    assert tally.slowest < 5
    assert tally.grown < 300
    if form.startswith("zip"):
        assert tally.differing == 0


NOISE = Image.effect_noise((40, 40), 90).convert("RGB")
KINDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp"}
WORDS = ("a star, on blue", "café {a|b} \u661f\n")
TEXTS = [text.encode(code) for text in WORDS for code in ("utf-8", "utf-16")]
BATCH = 50


@pytest.mark.parametrize("count", [SHORT, pytest.param(40_000, marks=long.marks)])
def test_pictures(count, tmp_path):
    """In = used + reported, in folders of `BATCH` pictures."""
    whole = {kind: encoded(NOISE, kind) for kind in KINDS}
    random, tally, used, reported = Random(0), Fuzzed(), 0, 0
    for start in range(0, count, BATCH):
        folder = tmp_path / f"{start}"
        folder.mkdir()
        for number in range(BATCH):
            kind = random.choice(list(KINDS))
            spoilt = changed(whole[kind], random, dense=100)
            (folder / f"{number}.{KINDS[kind]}").write_bytes(spoilt)
        found = Tally()
        with timed(tally), watched() as happened:
            dataset = read_folder(folder, "empty", setting="train_data_dir")
            checked = check_pictures(dataset, on_bad_image="drop", min_side=8, tally=found)
        dropped = found.as_json()["train"].get("dropped", {"count": 0, "names": []})
        assert len(checked.dataset) + dropped["count"] == BATCH
        assert len(dropped["names"]) == dropped["count"]
        assert happened == []
        used, reported = used + len(checked.dataset), reported + dropped["count"]
    print(f"{used} used, {reported} reported")
    assert used + reported == count
    assert used > 0
    assert reported > 0


@pytest.mark.parametrize("count", [SHORT, pytest.param(10_000, marks=long.marks)])
def test_captions(count, tmp_path):
    """In = read + reported, and what is read is text."""
    picture = encoded(Image.new("RGB", (16, 16)))
    random, read, reported = Random(0), 0, 0
    for number in range(BATCH):
        (tmp_path / f"{number}.png").write_bytes(picture)
    for _ in range(0, count, BATCH):
        for number in range(BATCH):
            spoilt = changed(random.choice(TEXTS), random)
            (tmp_path / f"{number}.txt").write_bytes(spoilt)
        with timed(Fuzzed()), watched() as happened:
            found = scan_folder(tmp_path, "stop", setting="train_data_dir")
        assert happened == []
        assert len(found.captions) + len(found.unusable) == BATCH
        for written in found.captions.values():
            assert all("\0" not in text and text.strip() for text in written.captions)
        read, reported = read + len(found.captions), reported + len(found.unusable)
    print(f"{read} read, {reported} reported")
    assert read > 0
    assert reported > 0


def test_the_watch_sees_what_it_must(tmp_path):
    """Otherwise all of this would prove nothing."""
    with watched() as happened:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_bytes(b"")
        torch.load(io.BytesIO(saved(Evil(tmp_path / "made"))), weights_only=False)
    assert len(happened) == 3
    assert (tmp_path / "made").exists()
