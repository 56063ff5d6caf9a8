"""BentoML's own timers, which outlive their requests."""

from typing import Any

from starlette.types import Receive, Scope, Send


def without_bentoml_timers() -> None:
    """Lets requests past BentoML's timeout, which cannot be set to none; the server has its own for body and answer.

    BentoML 1.4.39 sets a timer for each request, refused ones too, and never cancels it. Until it fires, after
    ``traffic.timeout``, it holds the request's context; and asyncio, which drops cancelled timers only where they are
    more than half of all, keeps the server's own beside it, with request and body. That was 15 KB a request for six
    minutes: at 32 requests/s the worker grew by 160 MiB before it stayed (SmolLM2-135M, 2026-11).
    """
    try:
        from bentoml._internal.server.http.traffic import TimeoutMiddleware
    except ImportError:  # another version; test_service.py looks at the memory itself
        return
    TimeoutMiddleware.__call__ = _pass


async def _pass(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
    await self.app(scope, receive, send)
