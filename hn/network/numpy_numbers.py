"""The numbers of numpy 1, which some programs left among a file's values: the web UI reads them,
torch's safe loading does not.

Nothing of numpy runs on what a file says: each becomes Python's own number, or an error.
"""

import struct
from typing import Any

from hn.errors import shown

_CODES = {
    "b1": "?",
    "i1": "b",
    "u1": "B",
    "i2": "h",
    "u2": "H",
    "i4": "i",
    "u4": "I",
    "i8": "q",
    "u8": "Q",
    "f2": "e",
    "f4": "f",
    "f8": "d",
}
_ORDERS = {"<": "<", ">": ">", "|": "<"}  # the last: of one byte, which has no order


class Kind:
    """What stands for a `numpy.dtype`: kind and size, such as `f8`; the order of bytes follows.

    Raises `ValueError` for texts and objects.
    """

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _CODES:
            raise ValueError(f"a numpy value of kind {shown(code)}")
        self.format = _CODES[code]
        self.order = "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = _ORDERS[state[1]]


def number(kind: Kind, stored: bytes) -> float | bool:
    """What stands for numpy's `scalar`. Raises `struct.error` for bytes of another size."""
    return struct.unpack(kind.order + kind.format, stored)[0]


SCALAR = "numpy.core.multiarray.scalar"
# what torch's unpickler is to use for the names in the file
STAND_INS = [(number, SCALAR), (Kind, "numpy.dtype")]
