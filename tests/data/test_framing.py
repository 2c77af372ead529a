"""What is seen of a picture, held against what the web UI saw."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hn.data.pictures.decoding import Example, open_picture
from hn.data.pictures.framing import CENTRE, Frame, Framing, cut_out, picture_shares, to_tensor
from tests import golden

GOLDEN = golden.read_tensors("images/images.safetensors")
PIXELS = [key for key in GOLDEN if "weight=0" in key and key.endswith("|pixels")]
TURNED = [key for key in PIXELS if key.startswith("exif_rotated")]
STRETCHED = [key for key in PIXELS if key not in TURNED]


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


def frame_of(picture, size, place=CENTRE, resize_mode="crop") -> Frame:
    """Of a picture's width and height."""
    return Framing(size=size, resize_mode=resize_mode).frame(picture, place)


def frame(picture, *arguments, **settings) -> Frame:
    return frame_of(picture.size, *arguments, **settings)


def cut(picture, size, *place) -> torch.Tensor:
    return to_tensor(picture, frame(picture, size, *place))


@pytest.mark.parametrize("key", STRETCHED)
def test_a_stretched_picture_is_what_the_web_ui_encodes(key):
    example, size = golden_example(key)
    picture = open_picture(example)
    seen = to_tensor(picture, frame(picture, size, resize_mode="stretch"))
    assert torch.equal(levels(seen), GOLDEN[key])


@pytest.mark.parametrize("key", TURNED)
def test_a_picture_with_an_exif_turn_is_the_web_uis_turned(key):
    """There the turn is ignored; a quarter to the right is all the difference."""
    example, (width, height) = golden_example(key)
    picture = open_picture(example)
    seen = to_tensor(picture, frame(picture, (height, width), resize_mode="stretch"))
    assert torch.equal(levels(seen), torch.rot90(GOLDEN[key], -1, (1, 2)))


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
@pytest.mark.parametrize("resize_mode", ["crop", "pad", "stretch"])
def test_any_shape_becomes_the_training_size(size, wanted, resize_mode):
    picture = Image.new("RGB", size)
    for place in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        seen = frame(picture, wanted, place, resize_mode)
        assert to_tensor(picture, seen).shape == (3, wanted[1], wanted[0])
        left, top, right, bottom = seen.visible
        assert 0 <= left < right <= seen.resized[0]
        assert 0 <= top < bottom <= seen.resized[1]
        assert (seen.visible == seen.box) or resize_mode == "pad"


def test_a_crop_fills_a_wide_size_and_keeps_proportions():
    """A circle stays one: 20 x 20 becomes 40 x 40, of which the middle 16 rows are kept."""
    seen = frame(Image.new("RGB", (20, 20)), (40, 16))
    assert (seen.resized, seen.box) == ((40, 40), (0, 12, 40, 28))
    assert frame(Image.new("RGB", (20, 20)), (40, 16), (0.0, 1.0)).box == (0, 24, 40, 40)


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.tuples(st.integers(16, 800), st.integers(16, 800)),
)
def test_all_of_a_padded_picture_is_seen_in_its_proportions(picture, size):
    seen = frame_of(picture, size, resize_mode="pad")
    assert (seen.visible, seen.size) == ((0, 0, *seen.resized), size)
    assert any(side == whole for side, whole in zip(seen.resized, size, strict=True))
    scale = min(size[0] / picture[0], size[1] / picture[1])
    for side, own in zip(seen.resized, picture, strict=True):
        assert side == 1 or abs(side - own * scale) <= 0.5 + 1e-9
    for corner, side, whole in zip(seen.corner, seen.resized, size, strict=True):
        assert abs((whole - side) / 2 + corner) <= 0.5  # in the middle


def test_padding_repeats_the_edge():
    """8 x 4 in 8 x 8: two rows above, two below."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    seen = np.asarray(cut_out(picture, frame(picture, (8, 8), resize_mode="pad")))
    assert (seen[2:6] == pixels).all()
    assert (seen[:2] == pixels[:1]).all()
    assert (seen[6:] == pixels[-1:]).all()
    upright = picture.transpose(Image.Transpose.TRANSPOSE)
    turned = np.asarray(cut_out(upright, frame(upright, (8, 8), resize_mode="pad")))
    assert (turned.swapaxes(0, 1) == seen).all()


@pytest.mark.parametrize("picture", [(160, 80), (80, 160), (100, 57), (1, 90), (90, 1), (64, 64)])
@pytest.mark.parametrize("size", [(64, 64), (32, 64)])
def test_the_shares_are_the_picture_in_the_frame(picture, size):
    """Counted pixel by pixel in a white picture laid on black."""
    seen = frame_of(picture, size, resize_mode="pad")
    canvas = np.zeros((size[1], size[0]))
    left, top, right, bottom = (
        side - corner for side, corner in zip(seen.visible, seen.corner * 2, strict=True)
    )
    canvas[top:bottom, left:right] = 1
    cells = canvas.reshape(size[1] // 8, 8, size[0] // 8, 8).mean(axis=(1, 3))
    shares = picture_shares(seen, (size[1] // 8, size[0] // 8))
    torch.testing.assert_close(shares[0], torch.from_numpy(cells).float())


@pytest.mark.parametrize("resize_mode", ["crop", "stretch"])
def test_without_padding_all_shares_are_one(resize_mode):
    seen = frame_of((1001, 333), (56, 24), (0.3, 0.7), resize_mode)
    assert picture_shares(seen, (3, 7)).unique().tolist() == [1]


def test_a_native_picture_is_cut_without_a_change():
    pixels = np.random.default_rng(0).integers(0, 256, (75, 131, 3), dtype=np.uint8)
    framing = Framing(size=(64, 64), resize_mode="bucket", step=8, native_size=True)
    seen = framing.frame((131, 75), (1.0, 0.0))
    assert (np.asarray(cut_out(Image.fromarray(pixels), seen)) == pixels[:72, 3:]).all()


def test_a_picture_of_ordinary_proportions_is_resized_whole_and_then_cut():
    pixels = np.random.default_rng(0).integers(0, 256, (75, 131, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    seen = frame(picture, (64, 64), (0.7, 0.5))
    expected = picture.resize((112, 64), Image.Resampling.LANCZOS).crop((34, 0, 98, 64))
    assert (np.asarray(cut_out(picture, seen)) == np.asarray(expected)).all()


def test_of_a_long_picture_only_what_is_seen_is_resized():
    """The limits of what is said of the difference: soft pictures, 5 to 25 times too long."""
    draw = np.random.default_rng(0)
    for ratio in (5, 9, 25):
        rough = draw.integers(0, 256, (10, 10 * ratio, 3), dtype=np.uint8)
        picture = Image.fromarray(rough).resize((60 * ratio + 7, 60), Image.Resampling.BICUBIC)
        for place in (0.0, 0.4, 1.0):
            seen = frame(picture, (48, 48), (place, 0.5))
            whole = picture.resize(seen.resized, seen.resample).crop(seen.box)
            found = np.asarray(cut_out(picture, seen)).astype(int)
            assert np.abs(found - np.asarray(whole)).max() <= 2


@pytest.mark.parametrize("resize_mode", ["bucket", "crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(4000, 1), (1, 40_000)])
def test_slivers_take_neither_time_nor_memory(size, resize_mode):
    """Resized whole, one of 1 x 40,000 for 512 x 512 has 10 gigapixels."""
    picture = Image.new("RGB", size, (255, 127, 0))
    framing = Framing(size=(512, 512), resize_mode=resize_mode, step=64, max_aspect_ratio=4)
    began = time.process_time()
    seen = to_tensor(picture, framing.frame(size))
    assert time.process_time() - began < 1
    assert seen.flatten(1).unique(dim=1).shape == (3, 1)
