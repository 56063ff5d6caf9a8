"""This application's engine behind the API: one thread owns the model, and the event loop talks to it by messages."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import torch

from app.data.tokenize import special_ids
from app.errors import AppError
from app.generate.cache import CacheBits
from app.generate.engine import Engine
from app.generate.request import Chunk, Request
from app.generate.sampling import Sampling
from app.generate.session import Session
from app.serve.api_error import ApiError
from app.serve.backend import State
from app.serve.job import Done, Ending, Event, Job, Piece
from app.serve.metrics import Metrics
from app.serve.turns import TurnQueue
from app.serve.vocabulary import Vocabulary

log = logging.getLogger("app.serve")

_FAILURES = 3
"""Failed steps in a row after which the model is given up: a broken CUDA context fails every step that follows."""


class LocalBackend:
    """See `app.serve.backend.Backend`.

    Args:
        load: opens the model; runs in the engine's thread.
        slots, context, cache_bits, speculate: of the engine.
        metrics: are told of first tokens and gaps between tokens.
    """

    state: State
    vocabulary: Vocabulary
    context: int

    def __init__(
        self,
        load: Callable[[], Session],
        *,
        slots: int,
        context: int | None,
        cache_bits: CacheBits,
        speculate: bool,
        metrics: Metrics,
    ) -> None:
        self.state = "loading"
        self.context = 0
        self._load = load
        self._slots = slots
        self._asked_context = context
        self._cache_bits: CacheBits = cache_bits
        self._speculate = speculate
        self._metrics = metrics
        # Messages to the thread: a job, or None to stop it.
        self._inbox: SimpleQueue[tuple[Job, Done] | None] = SimpleQueue()
        self._outbox: list[tuple[Job, Event, Done | None]] = []
        self._queue: TurnQueue[tuple[Job, Done]] = TurnQueue(slots)
        self._running: dict[Job, tuple[Request, Done]] = {}
        self._adapter: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._stopping = False
        # Nothing is put into the inbox once the thread has emptied it for the last time.
        self._door = threading.Lock()
        self._closed = False
        self._device = torch.device("cpu")

    def open(self) -> None:
        """Begins to load the model in the engine's thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, job: Job, done: Done) -> None:
        """Queues an answer."""
        with self._door:
            if not self._closed:
                self._inbox.put((job, done))
                return
        job.deliver(_gone())
        done()

    def running(self) -> int:
        return len(self._running)

    def waiting(self) -> int:
        return len(self._queue) + self._inbox.qsize()

    def cache_use(self) -> float:
        used = sum(request.used for request, _ in list(self._running.values()))
        return used / (self._slots * self.context) if self.context else 0.0

    def memory(self) -> dict[str, Any]:
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            return {"device": torch.cuda.get_device_name(self._device), "used": total - free, "total": total}
        import psutil

        used, total = psutil.Process().memory_info().rss, psutil.virtual_memory().total
        return {"device": "cpu", "used": used, "total": total}

    async def close(self) -> None:
        """Ends what runs, and the thread."""
        self._stopping = True
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join, 10.0)

    def _main(self) -> None:
        """The engine's thread."""
        try:
            session = self._load()
            engine = self._new_engine(session)
            self.vocabulary = Vocabulary(session.tokenizer, session.family)
            self.context = engine.context
            self._device = next(session.model.parameters()).device
            stop_ids = special_ids(session.tokenizer, session.family)
            self._stop_ids = frozenset(stop_ids[token] for token in session.family.stop_tokens)
            self._warm_up(session, engine)
        except AppError as fault:
            log.error("the model cannot be loaded: %s", fault)
            self.state = "failed"
            return
        except Exception:
            log.exception("the model cannot be loaded")
            self.state = "failed"
            return
        self.state = "ready"
        log.info("ready", extra={"context": engine.context, "slots": self._slots})
        failures = 0
        while not self._stopping:
            try:
                self._receive(idle=not engine.busy and not self._queue)
                self._start_waiting(session, engine)
                if engine.busy:
                    engine.step()
                failures = 0
            except Exception:
                # A failed step costs the requests in it, not the server: they are told, and the cache begins anew.
                log.exception("a step of the engine failed")
                self._fail_running(ApiError(500, "the model failed on this request", code="model_error"))
                failures += 1
            if failures:
                del engine  # and its cache: there may be no room for two
                renewed = self._try_new_engine(session) if failures < _FAILURES else None
                if renewed is None:
                    self.state = "failed"
                    break
                engine = renewed
            self._flush()
        self._refuse_rest()
        self._flush()

    def _warm_up(self, session: Session, engine: Engine) -> None:
        """Answers once with each adapter and with the base, so that no client waits for kernels to be compiled.

        The base comes last and stays on.
        """
        prompt = [min(self._stop_ids)] * 8
        for run in (*session.adapters, None):
            session.use(run)
            engine.generate([prompt], Sampling(max_tokens=4, ignore_stop=True))

    def _new_engine(self, session: Session) -> Engine:
        return Engine(
            session,
            slots=self._slots,
            context=self._asked_context,
            cache_bits=self._cache_bits,
            speculate=self._speculate,
        )

    def _try_new_engine(self, session: Session) -> Engine | None:
        try:
            return self._new_engine(session)
        except Exception:
            log.exception("the engine cannot be renewed")
            return None

    def _receive(self, *, idle: bool) -> None:
        """Takes in new jobs; waits for one while there is nothing to do."""
        try:
            while (message := self._inbox.get(block=idle)) is not None:
                job, _ = message
                self._queue.push(job.adapter, message)
                idle = False
        except Empty:
            return

    def _start_waiting(self, session: Session, engine: Engine) -> None:
        """Hands waiting jobs to the engine, as slots and turns allow, and cancels what nobody waits for."""
        for job, done in self._queue.remove(lambda entry: entry[0].cancelled):
            self._end(job, done, Piece(text="", end=Ending(reason="cancelled", tokens=0, seed=None)))
        for job, (request, _) in self._running.items():
            if job.cancelled:
                request.cancel()
        while len(self._running) < self._slots:
            entry = self._queue.pop(len(self._running))
            if entry is None:
                return
            job, done = entry
            if job.adapter != self._adapter:
                session.use(job.adapter)
                self._adapter = job.adapter
            try:
                self._running[job] = engine.submit(job.prompt, job.sampling, self._listener(job, done)), done
            except AppError as fault:
                self._end(job, done, ApiError(400, fault.what, code="invalid_value", param="prompt"))

    def _listener(self, job: Job, done: Done) -> Callable[[Chunk], None]:
        """What the engine calls with each chunk of a job's answer."""
        before = 0.0

        def listen(chunk: Chunk) -> None:
            nonlocal before
            now = time.perf_counter()
            if chunk.token_ids:
                first = job.note_first()
                if first is not None:
                    self._metrics.first_token.observe(first)
                else:
                    self._metrics.token_gap.observe((now - before) / len(chunk.token_ids))
                before = now
            # A stop token ends the answer but is no part of its text.
            shown = tuple(entry for entry in chunk.logprobs if entry.token_id not in self._stop_ids)
            if chunk.answer is None:
                self._outbox.append((job, Piece(text=chunk.text, logprobs=shown), None))
                return
            del self._running[job]
            answer = chunk.answer
            end = Ending(reason=answer.finish_reason, tokens=len(answer.token_ids), seed=answer.seed)
            self._end(job, done, Piece(text=chunk.text, logprobs=shown, end=end))

        return listen

    def _end(self, job: Job, done: Done, event: Event) -> None:
        self._outbox.append((job, event, done))

    def _fail_running(self, failure: ApiError) -> None:
        for job, (_, done) in self._running.items():
            self._end(job, done, failure)
        self._running.clear()

    def _refuse_rest(self) -> None:
        """Ends all that still waits or runs, as the thread ends."""
        with self._door:
            self._closed = True
        self._fail_running(_gone())
        while not self._inbox.empty():
            self._receive(idle=False)
        for job, done in self._queue.remove(lambda entry: True):
            self._end(job, done, _gone())

    def _flush(self) -> None:
        """Hands the events of a step to the event loop, all at once."""
        if not self._outbox or self._loop is None:
            return
        events, self._outbox = self._outbox, []
        try:
            self._loop.call_soon_threadsafe(_deliver, events)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            log.debug("answers came after the server had stopped")


def _gone() -> ApiError:
    return ApiError(503, "the server is stopping", code="stopping")


def _deliver(events: list[tuple[Job, Event, Done | None]]) -> None:
    for job, event, done in events:
        job.deliver(event)
        if done is not None:
            done()
