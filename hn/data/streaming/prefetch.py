"""Making ahead of time, in a thread, what is needed next."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The items of an endless generator in their order, up to `depth` of them made beforehand.

    One thread makes them. What is raised there is raised here, where its item would have come.
    Closing it closes `items`, after the one that is being made.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        made = deque(pool.submit(next, items) for _ in range(depth))
        while True:
            item = made.popleft()
            made.append(pool.submit(next, items))
            yield item.result()
    finally:
        pool.shutdown(cancel_futures=True)
        items.close()
