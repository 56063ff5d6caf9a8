"""``python -m app prepare INPUT… --output data/``: turn what people have into what the trainer needs."""

from collections.abc import Sequence
from pathlib import Path

from app.commands import run_command


def prepare_command(
    inputs: list[str],
    output: Path = Path("data"),
    seed: int = 42,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    columns: dict[str, str] | None = None,
) -> int:
    """Turn CSV, JSONL, Parquet or a Hugging Face data set into training data, with a report.

    Args:
        inputs: files, folders, or hub ids (org/name?config=NAME&split=NAME&revision=COMMIT).
        output: the folder to write.
        seed: of the split.
        val_fraction: share of the validation split.
        test_fraction: share of the test split.
        columns: role=column where the names cannot be guessed (question, answer, context, system, group, id …).
    """
    from app.data.prepare import prepare

    report = prepare(
        inputs, output, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, columns=columns
    )  # fmt: skip
    print(report)
    return 0


def main(argv: Sequence[str]) -> int:
    return run_command(prepare_command, argv, name="prepare")
