"""Who comes in: how many at once, and until when."""

import asyncio
import math
import time
from collections import deque

from app.serve.api_error import ApiError
from app.serve.backend import Backend


class Gate:
    """Counts the answers that run or wait. On the event loop only, so that checking and counting are one step.

    Args:
        backend: must be ready.
        places: answers that may run or wait at once; no request may ask for more.
        slots: of them, those that run.

    Attributes:
        places: as given.
        taken: places taken.
        draining: whether new requests are refused because the server is about to stop.
    """

    def __init__(self, backend: Backend, *, places: int, slots: int) -> None:
        self.places = places
        self.taken = 0
        self.draining = False
        self._backend = backend
        self._slots = slots
        self._empty = asyncio.Event()
        self._empty.set()
        # Ends of the last answers, for a guess when a place falls free.
        self._ends: deque[float] = deque(maxlen=32)

    def enter(self, count: int) -> None:
        """Takes ``count`` places.

        Raises:
            ApiError: 503 while loading, failed or stopping; 429 if there are not so many places.
        """
        if self.draining:
            raise ApiError(
                503, "the server is stopping", code="stopping", headers={"Retry-After": "5", "Connection": "close"}
            )
        if self._backend.state == "failed":
            raise ApiError(503, "the model could not be loaded, or broke down", code="failed")
        if self._backend.state == "loading":
            raise ApiError(503, "the model is still loading", code="loading", headers={"Retry-After": "5"})
        if self.taken + count > self.places:
            raise ApiError(
                429,
                f"{self.taken} answers run or wait, of at most {self.places}; ask again later",
                code="queue_full",
                headers={"Retry-After": str(self.wait_s())},
            )
        self.taken += count
        self._empty.clear()

    def leave(self, count: int = 1) -> None:
        """Gives places back."""
        self.taken -= count
        assert self.taken >= 0, "more places were given back than taken"
        self._ends.append(time.monotonic())
        if self.taken == 0:
            self._empty.set()

    def wait_s(self) -> int:
        """A guess of the whole seconds until there is room: as long as the last answers took to end, 1 to 60."""
        if len(self._ends) < 2:
            return 1
        gap = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return min(max(math.ceil(gap * max(self.taken - self._slots, 1)), 1), 60)

    async def empty(self) -> None:
        """Returns when no answer runs or waits."""
        await self._empty.wait()
