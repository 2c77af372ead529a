"""Which pictures a micro-batch has: of one size, each equally often, a function of its number."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hn.data.order import Order

WIDE, TALL, SQUARE = (96, 64), (64, 96), (80, 80)


def order(sizes, repeats=None, batch_size=4, seed=0) -> Order:
    counts = np.ones(len(sizes), np.int32) if repeats is None else np.array(repeats, np.int32)
    return Order.of(np.array(sizes, np.int32), counts, batch_size, seed)


def drawn(it: Order, batches) -> list[int]:
    return [picture for number in batches for picture in it.batch(number)]


SIZES = [*[WIDE] * 11, *[TALL] * 6, SQUARE, *[(112, 48)] * 3]


def test_a_micro_batch_has_one_size():
    it = order(SIZES)
    for number in range(200):
        assert len({SIZES[picture] for picture in it.batch(number)}) == 1


def test_it_is_a_function_of_the_seed_and_the_number():
    forwards = [order(SIZES).batch(number) for number in range(60)]
    it = order(SIZES)
    numbers = np.random.default_rng(0).permutation(60).tolist()
    assert {number: it.batch(number) for number in numbers} == dict(enumerate(forwards))
    assert [order(SIZES, seed=1).batch(number) for number in range(60)] != forwards


def test_every_picture_is_seen_equally_often_over_an_epoch():
    """21 pictures in batches of 4: four epochs are 21 batches, in which each comes up 4 times."""
    for start in (0, 21, 210):
        counts = Counter(drawn(order(SIZES), range(start, start + 21)))
        assert sorted(counts) == list(range(21))
        # a bucket of one picture is shown four times in one batch, once in four epochs
        assert set(counts.values()) == {4}


def test_within_an_epoch_no_bucket_is_behind_by_more_than_half_a_batch():
    it, seen = order(SIZES), Counter()
    ends = [int(it._batches_until(epoch).sum()) for epoch in range(1, 30)]
    for number in range(ends[-1]):
        seen.update(it.batch(number))
        if number + 1 in ends:
            epochs = ends.index(number + 1) + 1
            for size in set(SIZES):
                pictures = [row for row, own in enumerate(SIZES) if own == size]
                shown = sum(seen[picture] for picture in pictures)
                assert abs(shown - epochs * len(pictures)) <= 2
                assert max(seen[p] for p in pictures) - min(seen[p] for p in pictures) <= 1


def test_buckets_are_mixed_and_their_order_differs_between_epochs():
    it = order([*[WIDE] * 40, *[TALL] * 40])
    buckets = [it.batch(number)[0] < 40 for number in range(40)]
    first, second = buckets[:20], buckets[20:]
    assert sum(first) == sum(second) == 10
    assert first != second
    assert first != sorted(first)


def test_repeats_are_seen_so_much_more_often():
    counts = Counter(drawn(order([WIDE] * 3, repeats=[1, 3, 2], batch_size=2), range(30)))
    assert counts == {0: 10, 1: 30, 2: 20}


def test_a_picture_more_moves_nothing_in_another_bucket():
    pictures_of = {
        name: [p for p in drawn(order(sizes), range(60)) if sizes[p] == WIDE]
        for name, sizes in (("before", SIZES), ("after", [*SIZES, TALL]))
    }
    count = min(map(len, pictures_of.values()))
    assert pictures_of["before"][:count] == pictures_of["after"][:count]


@given(
    st.lists(st.sampled_from([WIDE, TALL, SQUARE, (64, 64), (48, 112)]), min_size=1, max_size=25),
    st.integers(1, 9),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_any_set_is_seen_equally_often(sizes, batch_size, start):
    """As many epochs as a batch has pictures are as many batches as there are pictures."""
    it = order(sizes, batch_size=batch_size)
    first = int(it._batches_until(start * batch_size).sum())
    counts = Counter(drawn(it, range(first, first + len(sizes))))
    assert counts == dict.fromkeys(range(len(sizes)), batch_size)


@pytest.mark.parametrize("number", [0, 10**6, 10**9])
def test_a_far_batch_is_drawn_at_once(number):
    assert len(order([WIDE] * 1000 + [TALL] * 7).batch(number)) == 4
