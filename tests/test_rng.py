"""Randomness as a pure function of seed, purpose and position."""

import pytest
import torch

from hn import rng


def test_a_seed_is_the_same_on_every_platform_and_in_every_version():
    # written down once: if these change, a resumed run goes on with other numbers
    assert rng.seed_of(0, "noise", 0, 0) == 4989270442267675056
    assert rng.seed_of(7, "crop", 3) == 9266463690107369631


def test_every_part_of_the_position_counts():
    positions = [(0, 0), (0, 1), (1, 0), (1, 1), (2**40, 3)]
    seeds = {
        rng.seed_of(seed, purpose, *position)
        for seed in (0, 1, 2**33)
        for purpose in rng.PURPOSES
        for position in positions
    }
    assert len(seeds) == 3 * len(rng.PURPOSES) * len(positions)


def test_an_unknown_purpose_is_our_own_mistake():
    with pytest.raises(ValueError, match="tuple"):
        rng.seed_of(0, "noises", 0)


def test_drawing_leaves_the_global_generators_alone():
    before = torch.get_rng_state()
    torch.randn(3, generator=rng.generator(0, "noise", 1, 2))
    rng.python_random(0, "caption", 1, 2).random()
    rng.numpy_random(0, "order", 1).permutation(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_of_one_position_draw_the_same():
    first, again, other = (
        torch.randn(4, generator=rng.generator(3, "noise", 5, slot)) for slot in (6, 6, 7)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert rng.python_random(3, "crop", 5).random() == rng.python_random(3, "crop", 5).random()


def test_layers_that_draw_themselves_are_seeded_by_step_and_slot():
    drawn = []
    with torch.random.fork_rng():
        for slot in (0, 0, 1):
            rng.seed_layers(9, 4, slot)
            drawn.append(torch.nn.functional.dropout(torch.ones(64)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
