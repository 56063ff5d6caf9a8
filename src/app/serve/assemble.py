"""From settings to a server that is ready to load."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from app.generate.session import Session, open_base, open_runs
from app.serve.backend import Backend
from app.serve.catalogue import Catalogue, read_catalogue
from app.serve.keys import Keys, read_keys
from app.serve.local import LocalBackend
from app.serve.metrics import Metrics
from app.serve.server import Server
from app.serve.settings import Settings
from app.serve.vllm import VllmBackend


def assemble(settings: Settings, *, stored: Callable[[str], Path]) -> Server:
    """The server, nothing loaded yet.

    Args:
        settings: all of them.
        stored: the folder of a tag in BentoML's model store.

    Raises:
        AppError: the settings name no model, or what they name is not there.
    """
    catalogue = read_catalogue(settings, stored)
    keys = Keys(
        read_keys(settings.api_keys, settings.api_keys_file, rate=settings.rate_limit), rate=settings.rate_limit
    )
    metrics = Metrics()
    backend: Backend
    if settings.engine == "vllm":
        backend = VllmBackend(settings, catalogue, metrics=metrics)
    else:
        backend = LocalBackend(
            partial(_open, settings, catalogue),
            slots=settings.slots,
            context=settings.context,
            cache_bits=settings.cache_bits,
            speculate=settings.speculate,
            metrics=metrics,
        )
    return Server(settings, catalogue, backend, keys, metrics)


def _open(settings: Settings, catalogue: Catalogue) -> Session:
    if catalogue.runs:
        return open_runs(catalogue.runs, device=settings.device, base=catalogue.base)
    return open_base(catalogue.weights, catalogue.family, device=settings.device, quantization=settings.quantization)
