"""A trained tiny run, made once for all tests of evaluation."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.progress import Progress

from app.artifact import RunDirectory
from app.evaluate.suite import evaluate_run
from conftest import TinyCheckpoint
from support.fitting import arguments, fit, write_csv

Evaluate = Callable[..., dict]


@pytest.fixture(scope="session")
def trained(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of the tiny SmolLM2. Copy it before you write to it."""
    folder = tmp_path_factory.mktemp("evaluated")
    # A dozen groups and more in the test split: fewer cannot show a difference among all the tests that are made.
    data = write_csv(folder / "questions.csv", questions=160, group=2)
    directory = RunDirectory(folder / "run")
    fit(*arguments(tiny("smollm2"), data, directory.path, model__family="smollm2", model__lr=5e-3, validate_every=5))
    return directory


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two benchmark prompts."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(
        """{"sampling": {"max_tokens": 6}, "prompts": [
  {"id": "any", "category": "form", "messages": [{"role": "user", "content": "Say <b>anything</b>."}],
   "checks": {"max_length": 50}},
  {"id": "json", "category": "form", "messages": [{"role": "user", "content": "Give JSON."}],
   "checks": {"json_valid": true}}]}"""
    )
    return path


@pytest.fixture(scope="session")
def evaluate(prompts_file: Path) -> Evaluate:
    """`evaluate_run` on the CPU with few and short answers."""

    def call(run: RunDirectory, **options: object) -> dict:
        defaults: dict = {"answers": 4, "max_tokens": 8, "prompts": prompts_file, "batch_size": 4, "device": "cpu"}
        with Progress(disable=True) as progress:
            return evaluate_run(run.path, **{**defaults, **options}, progress=progress)

    return call
