"""Existing captions merged with those of a real, tiny, random BLIP."""

import pytest
import torch
from PIL import Image, ImageOps

from hn.errors import ModelError
from hn.prepare.captions import Blip, merge_order
from hn.prepare.settings import Settings
from tests.prepare import drawn, tiny_blip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_blip.make(tmp_path_factory.mktemp("blip")))


@pytest.mark.parametrize(
    ("action", "both", "existing_only", "generated_only"),
    [
        ("ignore", ("generated",), (), ("generated",)),
        ("copy", ("existing",), ("existing",), ("generated",)),
        ("prepend", ("existing", "generated"), ("existing",), ("generated",)),
        ("append", ("generated", "existing"), ("existing",), ("generated",)),
    ],
)
def test_what_each_action_takes(action, both, existing_only, generated_only):
    assert merge_order(action, "a cat", True) == both
    assert merge_order(action, "a cat", False) == existing_only
    assert merge_order(action, "", True) == generated_only
    assert merge_order(action, "", False) == ()


def test_blip_describes_pictures_in_words_within_the_lengths(folder):
    """Lengths count the start mark, and the end mark if one comes."""
    blip = Blip(Settings(blip_model=folder, blip_min_length=6, blip_max_length=9))
    caption = blip.describe(drawn.plain((30, 20)))
    assert set(caption.split()) <= set(tiny_blip.WORDS)
    assert 4 <= len(caption.split()) <= 8
    longer = Blip(Settings(blip_model=folder, blip_min_length=12, blip_max_length=16))
    assert 10 <= len(longer.describe(drawn.plain((30, 20))).split()) <= 15


def test_the_same_picture_has_the_same_caption_and_another_another(folder):
    blip = Blip(Settings(blip_model=folder, blip_min_length=6, blip_max_length=9))
    picture = drawn.with_subject((32, 32), (8, 8), reach=12)
    first = blip.describe(picture)
    torch.manual_seed(99)
    assert blip.describe(picture) == first
    assert blip.describe(ImageOps.mirror(picture)) != first


def test_beams_are_searched(folder):
    """More beams find captions that are at least as likely; here, another one."""
    wide = Blip(Settings(blip_model=folder, blip_min_length=6, blip_max_length=9, blip_beams=4))
    narrow = Blip(Settings(blip_model=folder, blip_min_length=6, blip_max_length=9))
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue", "white")]
    assert [wide.describe(p) for p in pictures] != [narrow.describe(p) for p in pictures]


def test_a_model_that_is_none_is_refused_with_its_setting(tmp_path):
    with pytest.raises(ModelError, match=r"blip_model '.*gone' cannot be loaded"):
        Blip(Settings(blip_model=str(tmp_path / "gone")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"blip_model '.*empty' cannot be loaded"):
        Blip(Settings(blip_model=str(tmp_path / "empty")))
