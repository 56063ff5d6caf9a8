"""``python -m app compare``: which of several runs is better, and is the difference real?"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands import run_command
from app.terminal import is_quiet, make_table

if TYPE_CHECKING:
    from rich.table import Table

    from app.evaluate.compare import Comparison, Duel


def compare(
    runs: list[str] | None = None,
    metrics: list[str] | None = None,
    output: Path | None = None,
    seed: int = 42,
) -> int:
    """Compares evaluated runs and their base on the same samples, pair by pair, with paired tests.

    p values are corrected by Holm's method for all tests that are made; below 0.05 counts as a difference.

    Args:
        runs: Run directories, and the word base for the model they were trained on; two or more.
        metrics: Only these, by their names in report.json; fewer tests are corrected less.
        output: A JSON file to write everything to as well.
        seed: Of the bootstrap.
    """
    from rich.console import Console

    from app.artifact import write_atomic
    from app.evaluate.compare import compare_runs

    found = compare_runs(runs or [], metrics=metrics, seed=seed)
    console = Console()
    if not is_quiet():
        console.print(figures(found))
    for line in told(found.duels):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if not is_quiet():
        console.print(
            f"\n{len(found.duels)} paired tests (bootstrap over groups; McNemar for independent yes-or-no rows), "
            "p values corrected by Holm's method for their number",
            style="dim",
            highlight=False,
        )
    for note in found.notes:
        console.print(f"note: {note}", highlight=False)
    if output is not None:
        write_atomic(output, json.dumps(dataclasses.asdict(found), indent=1, ensure_ascii=False) + "\n")
    return 0


def figures(found: "Comparison") -> "Table":
    """Every metric of every contender with its interval."""
    from app.evaluate.outcome import METRICS

    table = make_table("", *found.names, "n", right=(*found.names, "n"))
    table.columns[0].no_wrap = True
    for metric, estimates in found.estimates.items():
        cells = []
        for each in estimates:
            between = "" if each.low is None else f" [{each.low:.3g}, {each.high:.3g}]"
            cells.append("–" if each.value is None else f"{each.value:.3f}{between}")
        if any(each.n for each in estimates):
            table.add_row(METRICS[metric].title, *cells, f"{max(each.n for each in estimates):,}")
    return table


def told(duels: "Sequence[Duel]") -> list[str]:
    """A sentence for every pair and metric, by pair."""
    from app.evaluate.outcome import METRICS

    lines: list[str] = []
    for pair in dict.fromkeys((duel.first, duel.second) for duel in duels):
        lines += ["", f"{pair[0]} and {pair[1]}"]
        mine = [duel for duel in duels if (duel.first, duel.second) == pair]
        width = max(len(METRICS[duel.metric].title) for duel in mine)
        lines += [f"  {METRICS[duel.metric].title:<{width}}  {duel.sentence}" for duel in mine]
    return lines


def main(argv: Sequence[str]) -> int:
    return run_command(compare, argv, name="compare", stays="a sentence for each pair and metric")
