"""Threads that work a little ahead of what is asked for, and hand it over in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")


def in_order(
    function: Callable[[T], U], items: Iterable[T], ahead: int = 5, initializer: Callable[[], None] | None = None
) -> Iterator[tuple[T, Future[U]]]:
    """Yield each item and the future of function(item), computed a little ahead by as many threads as torch may use.

    At most `ahead` items a thread are under way or waiting; `initializer` is called once in each thread.
    """
    threads = torch.get_num_threads()
    pending: deque[tuple[T, Future[U]]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=initializer)
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) >= ahead * threads:
                yield pending.popleft()
        yield from pending
    finally:
        pool.shutdown(cancel_futures=True)
