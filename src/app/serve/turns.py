"""Whose turn it is: requests for several adapters on a model that runs one adapter at a time."""

from collections import deque
from collections.abc import Callable, Hashable
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class TurnQueue(Generic[T]):
    """First come, first served, in turns of one adapter each.

    A turn begins when nothing runs, and belongs to the adapter of the request that waits longest. Requests of the
    same adapter join it, whenever they came, so that a batch fills. While others wait, no more than ``share`` join a
    turn: then it runs dry and the next one begins. So each request waits for at most as many turns as there are
    adapters with an older request, each of at most ``share`` requests.

    Args:
        share: requests that may join a turn while other adapters' wait, at least 1.
    """

    def __init__(self, share: int) -> None:
        assert share >= 1
        self.adapter: Hashable = None
        self._share = share
        self._joined = 0
        self._arrivals = count()
        self._waiting: dict[Hashable, deque[tuple[int, T]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def push(self, adapter: Hashable, item: T) -> None:
        """Adds a request."""
        self._waiting.setdefault(adapter, deque()).append((next(self._arrivals), item))

    def pop(self, running: int) -> T | None:
        """The request to start now, for `adapter`; None if there is none, or others' turn must come first.

        Args:
            running: how many run; 0 lets a new turn begin.
        """
        if not self._waiting:
            return None
        if running == 0:
            self.adapter = min(self._waiting, key=lambda adapter: self._waiting[adapter][0][0])
            self._joined = 0
        mine = self._waiting.get(self.adapter)
        others = len(self._waiting) > (mine is not None)
        if mine is None or (others and self._joined >= self._share):
            return None
        self._joined += 1
        _, item = mine.popleft()
        if not mine:
            del self._waiting[self.adapter]
        return item

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Takes out the requests that need not run any more."""
        removed = []
        for adapter, items in list(self._waiting.items()):
            removed += [item for _, item in items if unwanted(item)]
            kept = deque(entry for entry in items if not unwanted(entry[1]))
            if kept:
                self._waiting[adapter] = kept
            else:
                del self._waiting[adapter]
        return removed
