"""What of a picture an inpainting model is to paint, drawn or read."""

from random import Random

import pytest
import torch
from PIL import Image

from hn.data.pictures import holes
from hn.data.pictures.decoding import Example
from hn.data.pictures.framing import Framing
from hn.data.pictures.holes import Hole
from hn.errors import DataError

SIZE = (48, 32)


def test_drawn_holes_are_of_all_kinds():
    draw = Random(0)
    found = torch.stack([holes.drawn(SIZE, draw) for _ in range(400)])
    assert found.shape == (400, 1, 32, 48)
    assert set(found.unique().tolist()) == {0, 1}
    shares = found.flatten(1).mean(1)
    assert 0.2 < float((shares == 1).float().mean()) < 0.3
    assert float(shares.min()) > 0  # something is always painted
    assert 0.2 < float(shares[shares < 1].mean()) < 0.6
    place = found[shares < 1].mean(0)[0]  # and every place is, now and then
    assert 0.02 < float(place.min()) < float(place.max()) < 0.8


def test_a_drawn_hole_follows_from_picture_and_number():
    frame = Framing(size=SIZE).frame((60, 40))
    example = Example("x", {}, "")
    same = [Hole(7, 1).mask(example, frame) for _ in range(2)]
    assert torch.equal(*same)
    others = [Hole(7, 2), Hole(8, 1), Hole(8, 2)]
    assert not all(torch.equal(same[0], it.mask(example, frame)) for it in others)


def test_a_mask_file_is_framed_as_its_picture_is(tmp_path):
    """White in its left third; of another size than its picture, in the same proportions."""
    mask = Image.new("L", (120, 80))
    mask.paste(255, (0, 0, 40, 80))
    mask.save(tmp_path / "x.mask.png")
    source = {"path": str(tmp_path / "x.mask.png"), "bytes": None}
    example = Example("x.png", {}, "", mask=source)
    frame = Framing(size=(30, 40)).frame((60, 40), (0.0, 0.5))  # of which the left half is seen
    found = Hole(0).mask(example, frame)
    assert found.shape == (1, 40, 30)
    assert torch.equal(found[0], torch.tensor([1.0] * 20 + [0.0] * 10).expand(40, 30))
    Image.new("L", (12, 8), 127).save(tmp_path / "x.mask.png")
    with pytest.raises(DataError, match=r"x\.png: its mask is white nowhere"):
        Hole(0).mask(example, frame)
    (tmp_path / "x.mask.png").write_text("no picture")
    with pytest.raises(DataError, match=r"x\.mask\.png"):
        Hole(0).mask(example, frame)
