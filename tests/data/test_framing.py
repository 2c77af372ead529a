"""What is seen of a picture, held against what the web UI saw."""

import numpy as np
import pytest
import torch
from PIL import Image

from hn.data.decoding import Example, open_picture
from hn.data.framing import CENTRE, Frame, Framing, to_tensor
from tests import golden

GOLDEN = golden.read_tensors("images/images.safetensors")
STRETCHED = [key for key in GOLDEN if "weight=0" in key and key.endswith("|pixels")]


def levels(tensor: torch.Tensor) -> torch.Tensor:
    """From -1..1 back to the 256 levels of a file."""
    found = (tensor + 1) * 127.5
    assert (found - found.round()).abs().max() < 1e-4
    return found.round().to(torch.uint8)


def golden_example(key: str) -> tuple[Example, tuple[int, int]]:
    """The file that a golden key names, and the training size (width, height)."""
    name, size = key.split("|")[:2]
    path = golden.FOLDER / "images" / name
    width, height = map(int, size.split("x"))
    return Example(name, {"path": str(path), "bytes": None}, ""), (width, height)


def halves(size=(8, 4)) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", size, "blue")
    picture.paste("red", (0, 0, size[0] // 2, size[1]))
    return picture


def frame(picture, size, place=CENTRE, resize_mode="crop") -> Frame:
    return Framing(size=size, resize_mode=resize_mode).frame(picture.size, place)


def cut(picture, size, *place) -> torch.Tensor:
    return to_tensor(picture, frame(picture, size, *place))


@pytest.mark.parametrize("key", STRETCHED)
def test_a_stretched_picture_is_what_the_web_ui_encodes(key):
    example, size = golden_example(key)
    picture = open_picture(example)
    seen = to_tensor(picture, frame(picture, size, resize_mode="stretch"))
    assert torch.equal(levels(seen), GOLDEN[key])


def test_a_tensor_has_the_range_of_the_autoencoder():
    tensor = cut(halves(), (4, 4), (0.0, 0.5))
    assert tensor.shape == (3, 4, 4)
    assert tensor[0].unique().tolist() == [1.0]
    assert tensor[1].unique().tolist() == [-1.0]


@pytest.mark.parametrize("size", [(8, 4), (4, 8)])
def test_places_choose_the_square_along_the_longer_side(size):
    pixels = np.arange(32, dtype=np.uint8).reshape(size[1], size[0])
    picture = Image.fromarray(pixels).convert("RGB")
    expected = {
        0.0: pixels[:4, :4],
        0.5: pixels[:4, 2:6] if size[0] > size[1] else pixels[2:6, :4],
        1.0: pixels[-4:, -4:],
    }
    for place, square in expected.items():
        along = (place, 0.3) if size[0] > size[1] else (0.3, place)
        assert torch.equal(levels(cut(picture, (4, 4), along))[0], torch.from_numpy(square.copy()))


@pytest.mark.parametrize("wanted", [(24, 24), (16, 40), (40, 16)])
@pytest.mark.parametrize("size", [(3, 100), (101, 37), (64, 64)])
@pytest.mark.parametrize("resize_mode", ["crop", "stretch"])
def test_any_shape_becomes_the_training_size(size, wanted, resize_mode):
    picture = Image.new("RGB", size)
    for place in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        seen = frame(picture, wanted, place, resize_mode)
        assert to_tensor(picture, seen).shape == (3, wanted[1], wanted[0])
        left, top, right, bottom = seen.box
        assert left >= 0
        assert top >= 0
        assert right <= seen.resized[0]
        assert bottom <= seen.resized[1]


def test_a_crop_fills_a_wide_size_and_keeps_proportions():
    """A circle stays one: 20 x 20 becomes 40 x 40, of which the middle 16 rows are kept."""
    seen = frame(Image.new("RGB", (20, 20)), (40, 16))
    assert (seen.resized, seen.box) == ((40, 40), (0, 12, 40, 28))
    assert frame(Image.new("RGB", (20, 20)), (40, 16), (0.0, 1.0)).box == (0, 24, 40, 40)
