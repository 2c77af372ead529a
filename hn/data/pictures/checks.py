"""Every picture and mask decoded once, before any model is loaded."""

import hashlib
from collections.abc import Iterator

from datasets import Dataset

from hn.data.cache.index import Contents
from hn.data.parallel import in_order, thread_count
from hn.data.pictures.decoding import Example, decode, read_content
from hn.data.pictures.images import examples, listed
from hn.data.pictures.masks import check_mask, read_mask
from hn.errors import DataError

NONE = Contents()


def check_pictures(dataset: Dataset, known: Contents = NONE) -> None:
    """Decode every picture and every mask once, but pictures that a cache knows only for masks.

    Raises `DataError` listing all pictures and masks that cannot be used.
    """
    faults: list[str] = []
    unusable = 0

    def look(example: Example) -> list[str]:
        return list(_faults(example, known))

    for found in in_order(look, examples(dataset, "checking pictures"), thread_count()):
        faults += found
        unusable += bool(found)
    if faults:
        headline = f"{unusable} of {len(dataset)} pictures cannot be used; mend or remove them"
        raise DataError(listed(headline, faults))


def _faults(example: Example, known: Contents) -> Iterator[str]:
    """What is wrong with a picture and its mask; in a thread of its own."""
    size = None
    try:
        if example.mask is not None or not _is_known(example, known):
            size = decode(example).pixels.size
    except DataError as error:
        yield str(error)
    try:
        mask = read_mask(example)
        if mask is not None and size is not None:
            check_mask(example, mask[1], size)
    except DataError as error:
        yield str(error)


def _is_known(example: Example, known: Contents) -> bool:
    if not len(known):
        return False
    try:
        return hashlib.sha256(read_content(example)).digest() in known
    except OSError:
        return False  # decoding will say so
