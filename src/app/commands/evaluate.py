"""``python -m app evaluate``: is the tuned model better than its base?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from app.commands import run_command


def evaluate(
    run: Path,
    split: Literal["auto", "test", "val"] = "auto",
    data: str | None = None,
    answers: int = 24,
    max_tokens: int = 128,
    batch_size: int = 8,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> int:
    """Measures a run and its base on the same held-out rows; writes reports/evaluation.json in the run directory.

    Args:
        run: The run directory that fit wrote.
        split: What to measure on; auto is the test split, or where that is empty the validation split.
        data: Where the run's data is now, if it has moved.
        answers: How many held-out questions are answered for ROUGE; 0 for none.
        max_tokens: Of each answer.
        batch_size: Rows at a time.
        device: Where to run.
    """
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from app.evaluate.suite import REPORT, evaluate_run

    console = Console()
    with Progress(console=Console(stderr=True), disable=not console.is_terminal) as progress:
        evaluation = evaluate_run(
            run,
            split=None if split == "auto" else split,
            data=data,
            answers=answers,
            max_tokens=max_tokens,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    base, tuned = evaluation.base, evaluation.tuned
    rows, tokens = tuned.perplexity.rows, tuned.perplexity.tokens
    table = Table(title=f"{evaluation.run}: {evaluation.split} split, {rows} rows, {tokens:,} trained tokens")
    for column in ("", "base", "tuned", "change"):
        table.add_column(column, justify="left" if not column else "right")
    figures = [("perplexity (lower is better)", base.perplexity.perplexity, tuned.perplexity.perplexity)]
    if base.rouge is not None and tuned.rouge is not None:
        figures += [
            (f"ROUGE-{label} of {tuned.rouge.answers} answers", getattr(base.rouge, name), getattr(tuned.rouge, name))
            for label, name in (("1", "rouge1"), ("2", "rouge2"), ("L", "rouge_l"))
        ]
    for label, before, after in figures:
        change = f"{(after - before) / before:+.0%}" if before else ""
        table.add_row(label, f"{before:.3f}", f"{after:.3f}", change)
    console.print(table)
    console.print(f"report: {run / 'reports' / REPORT}", soft_wrap=True)
    return 0


def main(argv: Sequence[str]) -> int:
    return run_command(evaluate, argv, name="evaluate")
