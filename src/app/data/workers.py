"""Worker processes: what they make is what one process would have made, in the same order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PARALLEL_FROM = 20_000_000
"""Bytes of input from which starting worker processes (0.5 s each) pays."""

MOST = 8
"""Each takes about 120 MB; reading, in one process, feeds no more."""


class Workers:
    """A pool of processes, or this process alone.

    Args:
        count: of processes; with 1 no other is started.
    """

    def __init__(self, count: int) -> None:
        self._ahead = 2 * count
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            # rensa would start a thread for each core in each worker.
            os.environ.setdefault("RAYON_NUM_THREADS", "1")
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_as_worker)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """``function`` of each item, in order.

        At most two items a process are under way, so that memory stays bounded however fast items come.
        """
        if self._pool is None:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(self._pool.submit(function, item))
            if len(waiting) >= self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """Ends the processes; what was not begun is left undone."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def default_count(input_bytes: int) -> int:
    """All cores for a large input, this process alone for a small one."""
    return min(os.cpu_count() or 1, MOST) if input_bytes > PARALLEL_FROM else 1


def _as_worker() -> None:
    """Leaves ctrl-C to the parent, and ends with it: a worker whose parent was killed would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
