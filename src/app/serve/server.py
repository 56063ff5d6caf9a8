"""The server itself, without HTTP: takes orders for answers, hands them to the backend, and stops in good order."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from app import __version__
from app.generate.sampling import Sampling
from app.serve.api_error import ApiError
from app.serve.backend import Backend
from app.serve.catalogue import Catalogue
from app.serve.gate import Gate
from app.serve.job import Event, Job
from app.serve.keys import Keys
from app.serve.metrics import Metrics
from app.serve.settings import Settings
from app.serve.vocabulary import Vocabulary
from app.serve.work import Work

log = logging.getLogger("app.serve")

T = TypeVar("T")

_FAREWELL_S = 5.0
"""Seconds that cancelled requests get to tell their clients."""


class Server:
    """What the routes work with; everything on one event loop.

    Attributes:
        settings, catalogue, backend, keys, metrics: as given.
        gate: who comes in.
        fingerprint: changes when the same seed may give another text.
        started: `time.time` of its start.
    """

    def __init__(
        self, settings: Settings, catalogue: Catalogue, backend: Backend, keys: Keys, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.backend = backend
        self.keys = keys
        self.metrics = metrics
        self.gate = Gate(backend, places=settings.slots + settings.queue, slots=settings.slots)
        identity = f"{__version__} {settings.engine} {catalogue.names}"
        self.fingerprint = f"fp_{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
        self.started = time.time()
        self._begun = time.monotonic()
        self._works: set[Work] = set()
        # One thread: the tokenizer is not made for several, and a long prompt must not hold up the event loop.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        metrics.gauge("app_requests_running", "Answers being written.", backend.running)
        metrics.gauge("app_requests_waiting", "Answers not begun.", lambda: max(self.gate.taken - backend.running(), 0))
        metrics.gauge("app_cache_use_ratio", "Share of the cache in use.", backend.cache_use)
        metrics.gauge("app_ready", "1 while requests are taken.", lambda: float(self.status == "ready"))

    @property
    def status(self) -> str:
        """ "ready", "loading", "failed" or "draining"."""
        return "draining" if self.gate.draining and self.backend.state != "failed" else self.backend.state

    @property
    def uptime(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self._begun

    async def encode(self, work: Callable[[Vocabulary], T]) -> T:
        """Runs what needs the tokenizer, off the event loop.

        Raises:
            ApiError: 503 before the model is loaded.
        """
        if self.backend.state != "ready":
            self.gate.enter(0)  # says why
        return await asyncio.get_running_loop().run_in_executor(self._encoder, work, self.backend.vocabulary)

    async def begin(
        self,
        *,
        arrived: float,
        model: str | None,
        field: str,
        prompts: Callable[[Vocabulary], list[list[int]]],
        count: int,
        each: int,
        max_tokens: int | None,
        shorten: bool,
        sampling: Callable[[int, int], Sampling],
        record: dict[str, Any],
    ) -> Work:
        """Takes an order for ``count * each`` answers.

        Args:
            arrived: `time.perf_counter` when the request came.
            model: the request's field.
            field: of the request that holds the prompts.
            prompts: makes their token ids.
            count: how many prompts.
            each: answers to each of them.
            max_tokens: the most tokens of an answer; None: what the context leaves.
            shorten: whether ``max_tokens`` gives way to the context, as one that nobody asked for.
            sampling: (answer's number, its max_tokens) -> how to write it.
            record: of the request, for the log.

        Raises:
            ApiError: there is no such model, no room in queue or context, or no model yet.
        """
        run = self.catalogue.run_of(model)
        name = run or self.catalogue.base_name
        record["model"] = name
        answers = count * each
        # More than there are places would never come in, however often the client asks again.
        most = min(self.settings.choices, self.gate.places)
        if answers > most:
            raise ApiError(
                400,
                f"{answers} answers were asked for, of at most {most}",
                code="invalid_value",
                param="n" if each > 1 else field,
            )
        self.gate.enter(answers)
        try:
            ids = await self.encode(prompts)
            limits = [self._limit(len(prompt), max_tokens, shorten=shorten, field=field) for prompt in ids]
            inbox: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
            jobs = [
                Job(
                    ids[index // each],
                    sampling(index, limits[index // each]),
                    adapter=run,
                    index=index,
                    inbox=inbox,
                    arrived=arrived,
                )
                for index in range(answers)
            ]
        except BaseException:
            self.gate.leave(answers)
            raise
        record["prompt_tokens"] = prompt_tokens = sum(map(len, ids))
        self.metrics.prompt_tokens.labels(name).inc(prompt_tokens)
        work = Work(jobs, inbox, model=name, prompt_tokens=prompt_tokens, deadline=arrived + self.settings.timeout)
        self._works.add(work)
        for job in jobs:
            self.backend.submit(job, self.gate.leave)
        return work

    def end(self, work: Work, record: dict[str, Any]) -> None:
        """Lets go of an order, whatever became of it: what still runs is cancelled; the rest is counted."""
        self._works.discard(work)
        work.cancel()
        record["answer_tokens"] = work.answer_tokens
        record["finish"] = work.reasons()
        if self.settings.log_prompts:
            record["answers"] = ["".join(result.text) for result in work.results]
        if work.first_s is not None:
            record["first_token_s"] = round(work.first_s, 4)
        self.metrics.answer_tokens.labels(work.model).inc(work.answer_tokens)
        for reason in work.reasons():
            self.metrics.finished.labels(work.model, reason).inc()

    async def drain(self) -> None:
        """Refuses new requests, and lets those that run end, within the grace time."""
        self.gate.draining = True
        log.info("stopping", extra={"running": self.gate.taken, "grace_s": self.settings.grace})
        if await _within(self.settings.grace, self._all_told()):
            return
        log.warning("requests are cut off", extra={"running": self.gate.taken})
        cut = ApiError(503, "the server stopped before the answer was whole", code="stopping")
        for work in list(self._works):
            work.cancel(cut)
        await _within(_FAREWELL_S, self._all_told())

    async def close(self) -> None:
        """Stops the backend."""
        self.gate.draining = True
        await self.backend.close()
        self._encoder.shutdown(wait=False, cancel_futures=True)

    async def _all_told(self) -> None:
        """Returns when no answer runs, and each is with its client."""
        await self.gate.empty()
        while self._works:
            await asyncio.sleep(0.02)

    def _limit(self, prompt: int, max_tokens: int | None, *, shorten: bool, field: str) -> int:
        """The most tokens of an answer to a prompt of that length."""
        context = self.backend.context
        room = context - prompt
        asked = 1 if max_tokens is None or shorten else max_tokens
        if asked > room:
            raise ApiError(
                400,
                f"the prompt has {prompt} tokens; with an answer of {asked} that is more than the context of {context}",
                code="context_length_exceeded",
                param="max_tokens" if room > 0 else field,
            )
        if prompt == 0:
            raise ApiError(400, "the prompt is empty", code="invalid_value", param=field)
        return min(max_tokens or room, room)


async def _within(seconds: float, wait: Awaitable[None]) -> bool:
    """Whether it came to its end in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wait
            return True
    return False
