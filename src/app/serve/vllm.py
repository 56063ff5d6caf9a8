"""vLLM behind the same routes: started with arguments made from the run, spoken to by its completions route.

The template, the tokenizer, the checks and the answers' shapes stay this application's own: vLLM is given token ids and
gives text back. So a run answers to the same requests in the same way, whichever engine generates.
"""

import asyncio
import json
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx

from app.data.tokenize import check_golden, load_tokenizer
from app.errors import AppError
from app.families import get_family
from app.generate.request import FinishReason
from app.generate.sampling import TokenLogprob
from app.serve.api_error import ApiError
from app.serve.backend import State
from app.serve.catalogue import Catalogue
from app.serve.job import Done, Ending, Job, Piece
from app.serve.metrics import Metrics
from app.serve.settings import Settings
from app.serve.vllm_arguments import completion_body, launch_arguments
from app.serve.vocabulary import Vocabulary

log = logging.getLogger("app.serve")

_POLL_S = 1.0
_STOP_S = 10.0
_DATA = "data: "


class VllmBackend:
    """See `app.serve.backend.Backend`.

    Args:
        settings: ``vllm_url`` names a vLLM that runs already; otherwise one is started on a free port of this machine.
        catalogue: what it serves.
        metrics: are told of first tokens and gaps between tokens.
    """

    state: State
    vocabulary: Vocabulary
    context: int

    def __init__(self, settings: Settings, catalogue: Catalogue, *, metrics: Metrics) -> None:
        self.state = "loading"
        self.context = 0
        self._settings = settings
        self._catalogue = catalogue
        self._metrics = metrics
        self._process: asyncio.subprocess.Process | None = None
        self._client: httpx.AsyncClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = 0
        self._waiting = 0

    def open(self) -> None:
        """Begins to start vLLM."""
        self._keep(self._open())

    def submit(self, job: Job, done: Done) -> None:
        """Passes an answer's order on; vLLM has a queue of its own."""
        self._waiting += 1
        self._keep(self._answer(job, done))

    def running(self) -> int:
        return self._running

    def waiting(self) -> int:
        return self._waiting

    def cache_use(self) -> float:
        """0: vLLM reports its own at the /metrics of its port."""
        return 0.0

    def memory(self) -> dict[str, Any]:
        """The first GPU's, from the driver: the model is another process'."""
        from app.plan.gpu import present

        cards = present()
        if not cards:
            return {"device": "unknown", "used": 0, "total": 0}
        return {"device": cards[0].name, "used": cards[0].used, "total": cards[0].total}

    async def close(self) -> None:
        """Stops vLLM, if this started it."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_S)
            except TimeoutError:
                self._process.kill()

    def _keep(self, work: Any) -> None:
        """Runs a coroutine; the event loop itself holds tasks weakly."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            self.vocabulary = await asyncio.to_thread(self._read_vocabulary)
            url = self._settings.vllm_url
            if url is None:
                port = _free_port()
                url = f"http://127.0.0.1:{port}"
                arguments = launch_arguments(self._settings, self._catalogue, port=port)
                python = self._settings.vllm_python or sys.executable
                # What `vllm` on the command line runs, of whichever environment has it.
                self._process = await asyncio.create_subprocess_exec(
                    python, "-m", "vllm.entrypoints.cli.main", *arguments
                )
            # A slow answer is ended by its request's deadline; a connection that does not come is a fault.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            timeout = httpx.Timeout(None, connect=10.0)
            self._client = httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, trust_env=False)
            self.context = await self._await_ready(self._client)
        except AppError as fault:
            log.error("vLLM cannot be started: %s", fault)
            self.state = "failed"
            return
        except OSError:
            log.exception("vLLM cannot be started")
            self.state = "failed"
            return
        self.state = "ready"
        log.info("ready", extra={"context": self.context, "engine": "vllm"})
        if self._process is not None:
            status = await self._process.wait()
            self.state = "failed"
            log.error("vLLM ended with status %s", status)

    def _read_vocabulary(self) -> Vocabulary:
        manifest = self._catalogue.manifest
        family = get_family(self._catalogue.family)
        revision = manifest.base.revision if manifest is not None and self._catalogue.base is None else None
        tokenizer = load_tokenizer(self._catalogue.weights, family, revision=revision)
        if manifest is not None:
            check_golden(manifest.golden, tokenizer, family)
        return Vocabulary(tokenizer, family)

    async def _await_ready(self, client: httpx.AsyncClient) -> int:
        """Waits until vLLM answers; the context it has.

        Raises:
            ChildProcessError: it ended first.
        """
        while True:
            if self._process is not None and self._process.returncode is not None:
                raise ChildProcessError(f"vLLM ended with status {self._process.returncode}")
            try:
                answer = await client.get("/v1/models")
                if answer.status_code == 200:
                    lengths = [model.get("max_model_len") for model in answer.json()["data"]]
                    return int(next(length for length in lengths if length))
            except (httpx.TransportError, StopIteration):
                pass  # not listening yet, or not loaded
            await asyncio.sleep(_POLL_S)

    async def _answer(self, job: Job, done: Done) -> None:
        """One answer from vLLM to its job."""
        try:
            async for piece in self._pieces(job):
                job.deliver(piece)
        except ApiError as fault:
            job.deliver(fault)
        except (httpx.HTTPError, ValueError, KeyError):
            log.exception("vLLM's answer broke off")
            job.deliver(ApiError(500, "the model failed on this request", code="model_error"))
        except asyncio.CancelledError:
            job.deliver(ApiError(503, "the server is stopping", code="stopping"))
            raise
        finally:
            if job.first:
                self._running -= 1
            else:
                self._waiting -= 1
            done()

    async def _pieces(self, job: Job) -> AsyncIterator[Piece]:
        """What vLLM streams, as pieces; leaving its stream makes it stop generating."""
        assert self._client is not None
        model = job.adapter or self._catalogue.base_name
        tokens = 0
        reason: str | None = None
        last = time.perf_counter()
        async for event in self._events(job, completion_body(job, model)):
            if "error" in event:
                raise _passed_on(400, event)
            if usage := event.get("usage"):
                tokens = int(usage["completion_tokens"])
            for choice in event["choices"]:
                now = time.perf_counter()
                first = job.note_first()
                if first is not None:
                    self._waiting, self._running = self._waiting - 1, self._running + 1
                    self._metrics.first_token.observe(first)
                else:
                    self._metrics.token_gap.observe(now - last)
                last = now
                reason = choice.get("finish_reason") or reason
                yield Piece(text=choice["text"], logprobs=_logprobs(choice.get("logprobs")))
        if job.cancelled:
            reason = "cancelled"
        elif reason not in ("stop", "length"):
            raise ValueError(f"vLLM's answer ended with {reason!r}")
        yield Piece(text="", end=Ending(reason=cast(FinishReason, reason), tokens=tokens, seed=job.sampling.seed))

    async def _events(self, job: Job, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events of vLLM's stream, until they end or the job is cancelled."""
        assert self._client is not None
        async with self._client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                raise _passed_on(answer.status_code, answer.json())
            lines = answer.aiter_lines()
            while True:
                pending = asyncio.ensure_future(anext(lines, None))
                try:
                    # A cancelled job is noticed between events, and within this time where none come.
                    while not (await asyncio.wait({pending}, timeout=0.1))[0] and not job.cancelled:
                        pass
                finally:
                    if not pending.done():
                        pending.cancel()
                if job.cancelled:
                    return
                line = pending.result()
                if line is None:
                    return
                if line.startswith(_DATA) and line != _DATA + "[DONE]":
                    yield json.loads(line.removeprefix(_DATA))


def _logprobs(given: dict[str, Any] | None) -> tuple[TokenLogprob, ...]:
    """vLLM's log-probabilities, whose tokens were asked for as ``token_id:N``."""
    if given is None:
        return ()

    def number(token: str) -> int:
        return int(token.removeprefix("token_id:"))

    return tuple(
        TokenLogprob(
            token_id=number(token),
            logprob=float(logprob),
            top=tuple((number(name), float(value)) for name, value in (top or {}).items()),
        )
        for token, logprob, top in zip(
            given["tokens"],
            given["token_logprobs"],
            given["top_logprobs"] or [None] * len(given["tokens"]),
            strict=True,
        )
    )


def _passed_on(status: int, body: dict[str, Any]) -> ApiError:
    """vLLM's refusal as ours; its own faults are not the client's."""
    detail = body.get("error") or body
    message = str(detail.get("message", "vLLM refused the request"))
    if 400 <= status < 500 and status not in (401, 403):
        return ApiError(400, message, code="invalid_value", param=detail.get("param"))
    log.error("vLLM answered %s: %s", status, message)
    return ApiError(500, "the model failed on this request", code="model_error")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
