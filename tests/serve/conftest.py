"""Runs to serve, and a server that most tests share."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from app.serve.server import Server
from conftest import TinyCheckpoint
from export.conftest import write_run
from support.serving import in_process


class Served(NamedTuple):
    """A server in this process."""

    url: str
    server: Server
    client: httpx.Client


@pytest.fixture(scope="session")
def runs(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs with different adapters over one tiny base, one of them with a dot in its name."""
    folder = tmp_path_factory.mktemp("served")
    for name, strength in (("helper", 0.1), ("poet.v2", 0.3)):
        write_run(folder / name, tiny("smollm2"), "smollm2", quantization="nf4", strength=strength)
    return {name: folder / name for name in ("helper", "poet.v2")}


@pytest.fixture(scope="session")
def served(runs: dict[str, Path]) -> Iterator[Served]:
    """Both runs and their base, on four slots of 512 tokens."""
    settings = {"run": [str(path) for path in runs.values()], "slots": 4, "context": 512, "base_name": "tiny"}
    with in_process(**settings) as (url, server), httpx.Client(base_url=url, timeout=60) as client:
        yield Served(url, server, client)
