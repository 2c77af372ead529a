"""How many operations are started, and what waits for the device."""

import pytest
import torch

from hn.benchmark.ops import Ops


def test_every_operation_counts_in_both_directions():
    x = torch.ones(4, requires_grad=True)
    with Ops() as ops:
        loss = x.sin().sum()
    assert ops.count == 2
    with Ops() as ops:
        loss.backward()
    assert ops.count >= 3  # the first gradient, of sum, of sin (cos and a product)
    assert ops.syncs == []


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (torch.Tensor.item, "aten._local_scalar_dense"),
        (float, "aten._local_scalar_dense"),
        (bool, "aten._local_scalar_dense"),
        (torch.Tensor.tolist, "tolist"),
        (torch.Tensor.cpu, "cpu"),
        (torch.nonzero, "aten.nonzero"),
        (lambda x: x[x > 0], "aten.index"),
    ],
)
def test_reading_a_number_is_noted_with_its_place(read, name):
    with Ops() as ops:
        read(torch.ones(1))
    assert f"{name} at tests/benchmark/test_ops.py:" in ops.syncs[0]


def test_a_copy_to_the_device_is_noted_if_it_is_waited_for():
    with Ops("meta") as ops:
        torch.ones(1).to("meta", non_blocking=True)
        torch.empty(1, device="meta").copy_(torch.ones(1), non_blocking=True)
    assert ops.syncs == []
    with Ops("meta") as ops:
        torch.ones(1).to("meta")
        torch.empty(1, device="meta").copy_(torch.ones(1))
    assert [sync.split()[0] for sync in ops.syncs] == ["aten._to_copy", "aten.copy_"]


def test_numbers_of_another_device_are_not_waited_for():
    with Ops("cuda") as ops:
        torch.ones(1).item()
    assert ops.syncs == []
