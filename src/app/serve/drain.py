"""SIGTERM: what runs is finished, new work is refused, and only then does the process go."""

import asyncio
import signal
import threading
from types import FrameType

import uvicorn

from app.serve.server import Server

_CONNECTIONS_S = 5
"""Seconds that connections get once all answers are out. uvicorn's default is to wait for them for ever, and a client
that stops reading never closes its own."""


def drain_on_signals(server: Server) -> None:
    """Puts a drain of the server before uvicorn's own shutdown, which would stop listening at once.

    Until then the port stays open, so that new requests hear 503 instead of a refused connection. A second signal ends
    the process without waiting. Nothing is done outside uvicorn's main thread (in tests).
    """
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)
    carrier = getattr(before, "__self__", None)
    if not isinstance(carrier, uvicorn.Server):
        return
    carrier.config.timeout_graceful_shutdown = _CONNECTIONS_S
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def drain(number: int) -> None:
        await server.drain()
        carrier.handle_exit(number, None)

    def begin(number: int) -> None:
        if tasks:
            carrier.handle_exit(signal.SIGTERM, None)
            carrier.handle_exit(signal.SIGINT, None)
        else:
            tasks.add(loop.create_task(drain(number)))

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(begin, number)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
