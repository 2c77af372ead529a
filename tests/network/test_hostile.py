"""Files whose tensors lie."""

import pytest
import torch

import hn
from hn.errors import ModelError
from hn.network import a1111
from hn.network.contents import Contents
from hn.network.module import Hypernetwork


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(32, 16), "claims 512 numbers, more than the file holds"),
        (torch.full((32, 16), float("nan")), "holds NaN or infinity"),
        (torch.zeros(32, 16, dtype=torch.int64), "no plain tensor of numbers"),
    ],
)
def test_hostile_or_spoilt_tensors_are_refused(tmp_path, tensor, message):
    state = a1111.to_dict(Contents.of(Hypernetwork.create((16,), seed=0)), "net")
    state[16][0]["linear.0.weight"] = tensor
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=message):
        hn.load(tmp_path / "net.pt")
