"""The answers that one request waits for."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.generate.sampling import TokenLogprob
from app.serve.api_error import ApiError
from app.serve.job import Ending, Event, Job, Piece


@dataclass(kw_only=True)
class Result:
    """An answer as far as it has come."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: Ending | None = None


class CalledOffError(Exception):
    """The answers were called off, and nobody wants to hear why."""


class Work:
    """One request's answers, read as they grow.

    Attributes:
        model: its public name.
        prompt_tokens: of all prompts.
        deadline: `time.perf_counter` at which it is given up.
        results: one for each answer.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        inbox: "asyncio.Queue[tuple[int, Event]]",
        *,
        model: str,
        prompt_tokens: int,
        deadline: float,
    ) -> None:
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.deadline = deadline
        self.results = [Result() for _ in jobs]
        self._jobs = jobs
        self._inbox = inbox
        self._why: ApiError | None = None
        self._ended = 0.0

    @property
    def whole(self) -> bool:
        """Whether all answers are complete."""
        return all(result.end is not None for result in self.results)

    @property
    def answer_tokens(self) -> int:
        """Of the answers that are complete."""
        return sum(result.end.tokens for result in self.results if result.end is not None)

    @property
    def first_s(self) -> float | None:
        """Seconds from arrival to the first token of any answer."""
        firsts = [job.first - job.arrived for job in self._jobs if job.first]
        return min(firsts, default=None)

    @property
    def total_s(self) -> float:
        """Seconds from arrival to the last ending."""
        return self._ended - self._jobs[0].arrived

    @property
    def tokens_per_second(self) -> float:
        """Of the first answer's tokens after its first; 0 where there are none."""
        end, first = self.results[0].end, self._jobs[0].first
        return (end.tokens - 1) / (self._ended - first) if end and end.tokens > 1 and self._ended > first else 0.0

    def reasons(self) -> list[str]:
        """How the answers ended."""
        return [result.end.reason for result in self.results if result.end is not None]

    def cancel(self, why: ApiError | None = None) -> None:
        """Calls off what is not complete; ``why`` is told to the client."""
        self._why = self._why or why
        for job, result in zip(self._jobs, self.results, strict=True):
            if result.end is None:
                job.cancel()

    async def next(self, patience: float) -> list[tuple[int, Piece]]:
        """New pieces, those of one answer in one: a client that reads slowly gets fewer and longer ones.

        Args:
            patience: seconds to wait; then the list is empty.

        Raises:
            ApiError: the answers failed.
            CalledOffError: they were called off.
        """
        try:
            async with asyncio.timeout(patience):
                events = [await self._inbox.get()]
        except TimeoutError:
            return []
        while not self._inbox.empty():
            events.append(self._inbox.get_nowait())
        return list(self._take(events))

    def _take(self, events: list[tuple[int, Event]]) -> Iterable[tuple[int, Piece]]:
        gathered: dict[int, list[Piece]] = {}
        for index, event in events:
            if isinstance(event, ApiError):
                raise event
            result = self.results[index]
            result.text.append(event.text)
            result.logprobs += event.logprobs
            if event.end is not None:
                result.end = event.end
                self._ended = time.perf_counter()
                if event.end.reason == "cancelled":
                    raise self._why or CalledOffError
            gathered.setdefault(index, []).append(event)
        for index, pieces in gathered.items():
            logprobs = tuple(entry for piece in pieces for entry in piece.logprobs)
            yield index, Piece(text="".join(p.text for p in pieces), logprobs=logprobs, end=pieces[-1].end)
