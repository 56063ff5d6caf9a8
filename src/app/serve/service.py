"""The BentoML service: what `bentoml serve` runs, and `bentoml build` packages (bentofile.yaml names it).

BentoML carries the process: a supervisor, and one worker with the model. Its own routes `/livez`, `/readyz` and
`/healthz` stay; every other path goes to the FastAPI application, errors included. What is heavy is imported in the
worker alone.
"""

import os
from pathlib import Path

import bentoml
import click
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import AppError
from app.serve.catalogue import read_catalogue
from app.serve.exposure import exposure
from app.serve.keys import read_keys
from app.serve.packaging import building, pack
from app.serve.settings import Settings, read_settings

LOOPBACK = "127.0.0.1"

_MARGIN_S = 60.0
"""Seconds by which BentoML's own timeout, which knows nothing of the error shape, lies behind the server's. BentoML
takes no value for none; `app.serve.timers` takes it out of the worker."""

_CACHES = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""torch keeps 1,024 compiled products on a CPU, one for each shape, and a server meets new shapes all day: it grew by
0.7 MiB a request to 1.5 GB, and so stays flat at the same speed (tiny model, 1,000 requests, torch 2.13, 2026-11)."""


class Gateway:
    """What BentoML mounts, at import; the application stands behind it once the worker has made it."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def imported_settings() -> Settings:
    """What environment and arguments say; wrong values end the command with their names.

    Raises:
        BentoMLException: the form of an AppError that BentoML's command line prints without a trace.
    """
    try:
        return read_settings(os.environ, vars(bentoml.use_arguments()))
    except AppError as fault:
        raise bentoml.exceptions.BentoMLException(str(fault)) from None


def served_settings() -> Settings:
    """The same for serving: in a bento, its own models stand in for the run it was built from."""
    arguments = vars(bentoml.use_arguments())
    bento = service.bento
    if bento is None:
        return read_settings(os.environ, arguments)
    named = any(os.environ.get(f"APP_{name}") for name in ("RUN", "MODEL"))
    tags = [] if named else [str(model.tag) for model in bento.info.all_models]
    rest = {name: value for name, value in arguments.items() if name not in ("run", "model")}
    return read_settings(os.environ, {**rest, **({"model": tags} if tags else {})})


def stored(tag: str) -> Path:
    """The folder of a model in BentoML's store, or in the bento.

    Raises:
        ConfigError: there is none.
    """
    from app.errors import ConfigError

    try:
        return Path(bentoml.models.get(tag).path)
    except (bentoml.exceptions.BentoMLException, ValueError):
        raise ConfigError(
            f"BentoML's store has no model {tag!r}",
            where="APP_MODEL",
            remedy="`python -m app export bento --run runs/NAME` puts a run there; `bentoml models list` lists them",
        ) from None


class ModelServer:
    """A fine-tuned model behind OpenAI's protocol and a plain one of its own."""

    def __init__(self) -> None:
        for name, value in _CACHES.items():
            os.environ.setdefault(name, value)  # read when torch is first used
        from app.serve.application import create_app
        from app.serve.assemble import assemble
        from app.serve.logs import configure_logs
        from app.serve.timers import without_bentoml_timers

        without_bentoml_timers()
        settings = served_settings()
        configure_logs(settings.log_level)
        self._server = assemble(settings, stored=stored)
        gateway.app = create_app(self._server)

    @bentoml.on_deployment  # type: ignore[untyped-decorator]  # mypy does not follow bentoml (pyproject.toml)
    @staticmethod
    def check() -> None:
        """In the supervisor, before there is a worker: whatever is wrong with the settings ends the command."""
        try:
            settings = served_settings()
            catalogue = read_catalogue(settings, stored)
            read_keys(settings.api_keys, settings.api_keys_file, rate=settings.rate_limit)
            if settings.engine == "vllm":
                from app.serve.vllm_arguments import launch_arguments

                launch_arguments(settings, catalogue, port=0)
        except AppError as fault:
            raise bentoml.exceptions.BentoMLException(str(fault)) from None
        context = click.get_current_context(silent=True)
        host = (context.params.get("host") if context is not None else None) or LOOPBACK
        if warning := exposure(host, settings):
            click.echo(f"warning: {warning}", err=True)

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def open(self) -> None:
        """Begins to load; the server answers meanwhile."""
        from app.serve.drain import drain_on_signals

        self._server.backend.open()
        drain_on_signals(self._server)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def close(self) -> None:
        """Stops the engine."""
        await self._server.close()

    async def __is_alive__(self) -> bool:
        """`/livez`: whether a restart would not help."""
        return self._server.backend.state != "failed"

    async def __is_ready__(self) -> bool:
        """`/readyz`: whether requests are taken."""
        return self._server.status == "ready"


gateway = Gateway()
_imported = imported_settings()
service = bentoml.service(
    name="app",
    workers=1,
    http={"host": LOOPBACK},
    # Our own logs and metrics take the place of BentoML's: see logs.py and metrics.py.
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    traffic={"timeout": _imported.timeout + _MARGIN_S},
)(bentoml.asgi_app(gateway, path="/")(ModelServer))
if building():
    service.models += pack(_imported)
