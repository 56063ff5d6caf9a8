"""What `bentoml build` needs and bentofile.yaml cannot say: a fresh wheel of this project, and the runs to pack."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bentoml
import click

from app.errors import AppError
from app.export.bento import find_stored, store_run
from app.serve.settings import Settings

_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "src")


def building() -> bool:
    """Whether `bentoml build` imports the service."""
    context = click.get_current_context(silent=True)
    return context is not None and context.info_name == "build"


def pack(settings: Settings) -> list[Any]:
    """Makes ``dist/app-*.whl`` from the checkout, and names the models that go into the bento.

    Runs (``bentoml build --arg run=runs/NAME``) are put into BentoML's store first, unless they are there already.

    Returns:
        BentoML's references to the models.

    Raises:
        BentoMLException: the wheel cannot be made, or a run cannot be stored.
    """
    try:
        build_wheel(Path.cwd(), Path.cwd() / "dist")
        tags = list(settings.model)
        for entry in settings.run:
            name, _, folder = entry.rpartition("=")
            run = Path(folder)
            tags.append(find_stored(run, name=name or None) or store_run(run, name=name or None))
    except AppError as fault:
        raise bentoml.exceptions.BentoMLException(str(fault)) from None
    except subprocess.CalledProcessError as fault:
        raise bentoml.exceptions.BentoMLException(f"the wheel cannot be built: {fault.stderr.strip()}") from None
    return [bentoml.models.BentoModel(tag) for tag in tags]


def build_wheel(checkout: Path, output: Path) -> Path:
    """Builds the project's wheel from a copy of its sources, so that neither leftovers nor stale files get into it.

    Raises:
        subprocess.CalledProcessError: pip says why on stderr.
    """
    output.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in _SOURCES:
            source, target = checkout / name, Path(folder) / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                shutil.copy2(source, target)
        # setuptools is among the pins: nothing is asked of the network.
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--wheel-dir", output, folder], check=True, capture_output=True, text=True)
    return max(output.glob("app-*.whl"), key=lambda wheel: wheel.stat().st_mtime)
