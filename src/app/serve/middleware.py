"""What every request passes before a route sees it: a name, a key, a limit on its size; and its line in the log."""

import asyncio
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.serve.api_error import ApiError
from app.serve.server import Server

log = logging.getLogger("app.serve.access")

_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_OPEN = frozenset({"/", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/health", "/metrics"})
"""Routes without a key: none of them generates, and none shows prompts."""
_QUIET = frozenset({"/health", "/metrics"})
"""Routes that machines ask every few seconds: logged at debug level."""
_DISCARDED = 64 << 20
"""Bytes of a too large body that are read and dropped, so that the client reads the answer instead of a reset."""


def record_of(scope: Scope) -> dict[str, Any]:
    """What the log will say about the request; routes add to it."""
    record: dict[str, Any] = scope["app.record"]
    return record


class Reception:
    """Names each request, measures and logs it, and answers for what goes wrong inside."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        asked = Headers(scope=scope).get("x-request-id", "")
        name = asked if _ID.fullmatch(asked) else secrets.token_hex(16)
        record: dict[str, Any] = {"request_id": name, "method": scope["method"], "path": scope["path"]}
        scope["app.record"] = record
        scope["app.arrived"] = begun
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            await self._app(scope, receive, named)
        except ApiError as fault:
            record["error"] = fault.code
            await JSONResponse(fault.body(), fault.status, headers=fault.headers)(scope, receive, named)
        except Exception:
            log.exception("a request failed", extra={"request_id": name})
            if status == 0:
                broken = ApiError(500, "the server failed on this request; its log says why", code="internal_error")
                await JSONResponse(broken.body(), broken.status)(scope, receive, named)
        finally:
            seconds = time.perf_counter() - begun
            # Unknown paths are one route: each name would otherwise be a time series of its own.
            route = getattr(scope.get("route"), "path", "") or "unknown"
            self._server.metrics.requests.labels(route, str(status)).inc()
            self._server.metrics.seconds.labels(route).observe(seconds)
            if "error" in record and "finish" not in record:
                self._server.metrics.rejected.labels(record["error"]).inc()
            level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
            log.log(level, "request", extra={**record, "status": status, "seconds": round(seconds, 4)})


class Guard:
    """Asks for the key, and counts the caller's requests."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            address = (scope.get("client") or ("-", 0))[0]
            authorization = Headers(scope=scope).get("authorization")
            record_of(scope)["caller"] = self._server.keys.caller(authorization, address)
        await self._app(scope, receive, send)


class BodyLimit:
    """Reads the body, sent in chunks or not, up to a limit; routes get it whole."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._limit = server.settings.body_limit
        self._timeout = server.settings.timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout):
                body = await self._read(receive)
        except TimeoutError:
            slow = {"Connection": "close", "x-should-retry": "false"}
            raise ApiError(408, "the body did not come in time", code="body_timeout", headers=slow) from None
        if body is None:
            return

        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None if the client went away."""
        parts: list[bytes] = []
        size = 0
        more = True
        while more and size <= _DISCARDED:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            more = message.get("more_body", False)
            if size <= self._limit:
                parts.append(part)
            else:
                parts.clear()
        if size > self._limit:
            raise ApiError(
                413,
                f"the body has more than {self._limit} bytes",
                code="body_too_large",
                headers={"Connection": "close"},
            )
        return b"".join(parts)
