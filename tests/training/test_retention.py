"""Which checkpoints stay."""

import pytest

from hn.training.keeping.retention import Retention


def kept(retention, steps, best=None, damaged=(), full=False):
    rule = retention.dispensable if full else retention.superfluous
    gone = rule(steps, best, lambda step: step not in damaged)
    return [step for step in steps if step not in gone]


@pytest.mark.parametrize(
    ("retention", "changes", "expected"),
    [
        (Retention(every=10), {}, [10, 20, 30, 40, 50]),
        (Retention(every=10, limit=3), {}, [30, 40, 50]),
        (Retention(every=10, limit=2, keep_every=20), {}, [20, 40, 50]),
        (Retention(every=10, limit=2), {"best": 10}, [10, 40, 50]),
        # two valid ones always stay
        (Retention(every=10, limit=2), {"damaged": [40]}, [30, 40, 50]),
        (Retention(every=10, limit=2), {"damaged": [30, 40, 50]}, [10, 20, 30, 40, 50]),
        # where a signal stopped the run counts as none of them, and goes when a newer one is there
        (Retention(every=20, limit=2), {}, [20, 40, 50]),
        (Retention(every=25, limit=2), {}, [40, 50]),
        (Retention(every=0, limit=3), {}, [30, 40, 50]),
        # a full disk
        (Retention(every=10), {"full": True}, [10, 20, 30, 40, 50]),
        (Retention(every=10, limit=4), {"full": True}, [40, 50]),
        (Retention(every=10, limit=4, keep_every=20), {"full": True, "best": 30}, [20, 30, 40, 50]),
    ],
)
def test_what_stays(retention, changes, expected):
    assert kept(retention, [10, 20, 30, 40, 50], **changes) == expected
