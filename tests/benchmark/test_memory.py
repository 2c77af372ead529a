"""What a computation holds, counted from the life of its storages."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hn.benchmark.memory import PeakMemory

KIB = 1024


def _squares(device):
    """Three squares of 1 KiB each, one after the other; each saves what it squared."""
    x = torch.ones(256, device=device, requires_grad=True)
    x.grad = torch.zeros_like(x)
    with PeakMemory() as held:
        a = x.square()
        b = a.square()
        loss = b.square().sum()
        del a, b
        loss.backward()
    return held


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_saved_and_peak_are_those_of_the_graph(device):
    held = _squares(device)
    assert held.saved == 2 * KIB + 8  # a and b for the backward pass, the loss and its own gradient
    assert held.peak > held.saved


def test_meta_tensors_count_as_real_ones_do():
    real, meta = _squares("cpu"), _squares("meta")
    assert (real.saved, real.peak) == (meta.saved, meta.peak)


def test_what_was_there_and_what_shares_a_storage_is_not_counted():
    x = torch.ones(16, 16)
    with PeakMemory() as held:
        x.t().reshape(-1)[0].add_(1)
    assert held.peak == 4 * 256  # of the reshaped copy alone
    assert held.saved == 0  # it is gone at the end


def test_checkpointing_saves_less_and_holds_it_again_in_the_backward_pass():
    def chain(x):
        for _ in range(8):
            x = x.sin()
        return x

    def measure(forward):
        x = torch.ones(256, device="meta", requires_grad=True)
        with PeakMemory() as held:
            forward(x).sum().backward()
        return held

    plain, checkpointed = (
        measure(chain),
        measure(lambda x: checkpoint(chain, x, use_reentrant=False)),
    )
    assert plain.saved > 7 * KIB
    assert checkpointed.saved < 2 * KIB < 7 * KIB < checkpointed.peak


def test_attention_on_meta_tensors_holds_no_scores():
    scores = 4 * 2 * 512 * 512
    with PeakMemory() as held:
        queries = torch.empty(1, 2, 512, 8, device="meta", requires_grad=True)
        F.scaled_dot_product_attention(queries, queries, queries).sum().backward()
    assert 0 < held.peak < scores / 2
