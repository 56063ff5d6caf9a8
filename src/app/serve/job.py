"""One answer in the making, between the event loop that ordered it and whoever generates it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.generate.request import FinishReason
from app.generate.sampling import Sampling, TokenLogprob
from app.serve.api_error import ApiError


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an answer ended.

    Attributes:
        reason: as the engine says.
        tokens: of the answer, with the stop token if one ended it.
        seed: that gives this text again; None where it is not known.
    """

    reason: FinishReason
    tokens: int
    seed: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """New text of an answer; the last one carries its ending."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    end: Ending | None = None


Event = Piece | ApiError
"""A piece, or the failure that ends the answer."""

Done = Callable[[], None]
"""Called on the event loop once an answer no longer takes a place."""


class Job:
    """One answer. Whoever generates it delivers pieces until an ending or an ApiError, exactly one of them, last.

    Attributes:
        prompt: token ids.
        sampling: how to write.
        adapter: of which run; None is the base.
        index: its number among the answers of one request.
        arrived: `time.perf_counter` when the request came.
        first: the same when its first token was there; 0 before.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        adapter: str | None,
        index: int,
        inbox: "asyncio.Queue[tuple[int, Event]]",
        arrived: float,
    ) -> None:
        self.prompt = list(prompt)
        self.sampling = sampling
        self.adapter = adapter
        self.index = index
        self.arrived = arrived
        self.first = 0.0
        self._inbox = inbox
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self._cancelled

    def cancel(self) -> None:
        """Ends it soon; from any thread, any number of times."""
        self._cancelled = True

    def note_first(self) -> float | None:
        """Marks the first token; seconds from arrival to it, or None if it was there before."""
        if self.first:
            return None
        self.first = time.perf_counter()
        return self.first - self.arrived

    def deliver(self, event: Event) -> None:
        """Hands an event to the request; on its event loop."""
        self._inbox.put_nowait((self.index, event))
