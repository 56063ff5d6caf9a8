"""Answers on their way to the client: as one JSON object, or as server-sent events; and what ends them early."""

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from app.serve.api_error import ApiError
from app.serve.job import Piece
from app.serve.server import Server
from app.serve.work import CalledOffError, Work

_PATIENCE_S = 10.0
"""Seconds of silence after which a stream begins, or sends a comment: proxies close what says nothing for a minute."""

_LINGER_S = 1.0
"""Seconds in which a client that hears of a failure may take it."""


class Form(Protocol):
    """How a route shows answers."""

    def whole(self, work: Work) -> dict[str, Any]:
        """The JSON object of complete answers."""

    def opening(self, work: Work) -> Sequence[dict[str, Any]]:
        """Events before the first piece."""

    def piece(self, work: Work, index: int, piece: Piece) -> Sequence[dict[str, Any]]:
        """Events of new text."""

    def closing(self, work: Work) -> Sequence[dict[str, Any] | str]:
        """Events after the last piece."""


class Delivery(Response):
    """A response that waits for its answers.

    The deadline holds for all of it, sending included. A client that goes away cancels its answers at once, streamed
    or not. What a slow reader has not yet read stays here; the backend never waits for it.
    """

    def __init__(self, server: Server, work: Work, form: Form, *, stream: bool, record: dict[str, Any]) -> None:
        super().__init__()
        self._server = server
        self._work = work
        self._form = form
        self._stream = stream
        self._record = record
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI response."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            async with asyncio.timeout(max(self._work.deadline - time.perf_counter(), 0)):
                await (self._events(send) if self._stream else self._object(scope, receive, send))
        except CalledOffError:
            self._record["gone"] = True
        except TimeoutError:
            late = ApiError(
                504,
                f"the answer was not complete within {self._server.settings.timeout:g} s",
                code="deadline_exceeded",
                headers={"x-should-retry": "false"},  # read by OpenAI's clients, which would ask twice more
            )
            await self._fail(late, scope, receive, send)
        except ApiError as fault:
            await self._fail(fault, scope, receive, send)
        finally:
            watcher.cancel()
            self._server.end(self._work, self._record)

    async def _watch(self, receive: Receive) -> None:
        """Cancels the answers when the client goes away."""
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await receive()
        self._work.cancel()

    async def _object(self, scope: Scope, receive: Receive, send: Send) -> None:
        while not self._work.whole:
            await self._work.next(_PATIENCE_S)
        await JSONResponse(self._form.whole(self._work))(scope, receive, send)

    async def _events(self, send: Send) -> None:
        work = self._work
        pieces = await work.next(_PATIENCE_S)  # before the status is sent: it may still be another one
        await self._begin(send)
        await self._send(send, self._form.opening(work))
        while True:
            if not pieces:
                await self._body(send, b": working\n\n")
            for index, piece in pieces:
                await self._send(send, self._form.piece(work, index, piece))
            if work.whole:
                break
            pieces = await work.next(_PATIENCE_S)
        await self._send(send, self._form.closing(work))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fail(self, fault: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        """Tells the client; in a stream that has begun, as its last event."""
        self._work.cancel()
        self._record["error"] = fault.code
        if not self._begun:
            await JSONResponse(fault.body(), fault.status, headers=fault.headers)(scope, receive, send)
            return
        # Whoever does not even take this is cut off: an unfinished response closes the connection.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await self._send(send, [fault.body()])
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        # nginx would otherwise hold events back to fill its buffers.
        headers.append((b"x-accel-buffering", b"no"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._begun = True

    async def _send(self, send: Send, events: Sequence[dict[str, Any] | str]) -> None:
        if events:
            lines = [event if isinstance(event, str) else json.dumps(event, ensure_ascii=False) for event in events]
            await self._body(send, "".join(f"data: {line}\n\n" for line in lines).encode())

    async def _body(self, send: Send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
