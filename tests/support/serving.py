"""Servers for tests: in this process for what is quick, as `bentoml serve` for what is real."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from app.serve.application import create_app
from app.serve.assemble import assemble
from app.serve.server import Server
from app.serve.settings import read_settings

ROOT = Path(__file__).parents[2]


class Opened:
    """The application with a server's life around it, as the BentoML service has it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._app: ASGIApp = create_app(server)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        self._server.backend.open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._server.close()
        await send({"type": "lifespan.shutdown.complete"})


@contextmanager
def in_process(**settings: Any) -> Iterator[tuple[str, Server]]:
    """A server on a free port, in a thread; its address, and itself. Ready when this yields."""
    server = assemble(read_settings({}, settings), stored=Path)
    with listening(Opened(server)) as url:
        until(lambda: server.status != "loading")
        assert server.status == "ready"
        yield url, server


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """An ASGI application on a free port, in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        carrier = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=carrier.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: carrier.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            carrier.should_exit = True
            thread.join(30)


@contextmanager
def bento_server(
    target: str, environment: Mapping[str, str], *arguments: str, folder: Path = ROOT, wait: str = "/readyz"
) -> Iterator[tuple[str, "subprocess.Popen[str]", Path]]:
    """`bentoml serve TARGET` as a process: its address, itself, and the file of its output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = Path(environment["BENTOML_HOME"]) / f"serve-{port}.log"
    command = [Path(sys.executable).with_name("bentoml"), "serve", target, "--port", str(port), *arguments]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=folder, stdout=out, stderr=subprocess.STDOUT, text=True
        )
        try:
            until(lambda: process.poll() is not None or answers(url + wait), seconds=120)
            assert process.poll() is None, log.read_text()
            yield url, process, log
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(60)


def bentoml_home(folder: Path) -> dict[str, str]:
    """The environment of a BentoML whose store is that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"BENTOML_HOME": str(folder), "BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1"}


def answers(url: str) -> bool:
    """Whether it is there, and content."""
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Any, *, seconds: float = 60.0) -> None:
    """Waits for it; fails after that time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.02)
