"""Runs `fit` in this process, on a tiny checkpoint and a small CSV, as a user would from the command line."""

import csv
from pathlib import Path

from app.__main__ import main

QUESTIONS = 40


def write_csv(path: Path, *, questions: int = QUESTIONS, group: int = 4) -> Path:
    """Questions with answers of uneven length, one group for each four."""
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "question", "answer", "group"])
        for number in range(questions):
            question = f"What is {number} plus {number * 3}, and why is it called a sum?"
            answer = f"It is {number * 4}." + " A sum adds one number to another." * (number % 5 + 1)
            writer.writerow([f"row-{number}", question, answer, f"group-{number // group}"])
    return path


def arguments(base: Path, data: Path, run: Path, config: Path | None = None, **options: object) -> list[str]:
    """The command line of a short run; ``options`` with ``__`` for the dots."""
    defaults = {
        "model__base": base,
        "data__path": data,
        "data__max_length": 512,
        "data__val_fraction": 0.2,
        "data__test_fraction": 0.2,
        "run": run,
        "trainer__accelerator": "cpu",
        "trainer__max_epochs": 1,
        "trainer__accumulate_grad_batches": 2,
        "validate_every": 2,
        "checkpoints__every": 1,
        "run_page__max_tokens": 4,
    }
    given = {**defaults, **options}
    pairs = [part for name, value in given.items() for part in (f"--{name.replace('__', '.')}", str(value))]
    return [*(["--config", str(config)] if config else []), *pairs]


def fit(*args: str) -> None:
    """`python -m app fit …`, which must succeed."""
    assert main(["fit", *args]) == 0
