"""``python -m app benchmark``: how fast a model answers."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.commands import run_command
from app.commands.source import check_source, open_source
from app.terminal import is_quiet, make_table, progress_bars

if TYPE_CHECKING:
    from rich.table import Table

    from app.evaluate.speed import SpeedReport


def benchmark(
    run: Path | None = None,
    base: str | None = None,
    family: str | None = None,
    prompt_tokens: int = 512,
    new_tokens: int = 256,
    load: int = 8,
    repeats: int = 5,
    warmup: int = 1,
    speculate: bool = False,
    output: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> int:
    """Times a run, or a base model: first token, decoding, prompts, whole answers, several requests at once, memory.

    A run's figures go to reports/benchmark.json, and from there into the report that evaluate writes.

    Args:
        run: Run directory that fit wrote.
        base: Instead of a run, a base model: hub id or local folder; needs --family.
        family: The base model's family.
        prompt_tokens: Of each prompt.
        new_tokens: Of each answer.
        load: Requests at once for the figures under load.
        repeats: Of every measurement; the median is shown, with the least and the greatest.
        warmup: Unmeasured repeats before.
        speculate: Draft by prompt lookup, as chat does; how much it helps depends on the text.
        output: A JSON file to write the figures to.
        device: Where to run.
    """
    from rich.console import Console

    from app.artifact import RunDirectory, write_atomic
    from app.evaluate.report import SPEED
    from app.evaluate.speed import speed_benchmark

    check_source(run, base, family, command="benchmark")
    session = open_source(run, base, family, device=device)
    console = Console()
    with progress_bars() as progress:
        found = speed_benchmark(
            session,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            load=load,
            repeats=repeats,
            warmup=warmup,
            speculate=speculate,
            progress=progress,
        )
    text = json.dumps(dataclasses.asdict(found), indent=1) + "\n"
    written = [path for path in (output, RunDirectory(run).reports / SPEED if run else None) if path is not None]
    for path in written:
        write_atomic(path, text)
    if not is_quiet() or not written:
        console.print(figures(str(run or base), found))
    if found.limit is not None and not is_quiet():
        console.print(
            f"memory bandwidth allows {found.limit.tokens_per_second:,.0f} tokens/s at one request "
            f"({found.limit.bandwidth / 1e9:,.0f} GB/s, {found.limit.bytes_per_token / 1e9:.2f} GB a token): "
            f"{found.limit.fraction:.0%} reached",
            highlight=False,
        )
    for path in written:
        console.print(f"figures: {path}", soft_wrap=True)
    return 0


def figures(name: str, found: "SpeedReport") -> "Table":
    """All measurements with their spread."""
    from app.pages.charts import number as short

    title = (
        f"{name} on {found.device}: {found.prompt_tokens} prompt tokens, {found.new_tokens} new, "
        f"load {found.load}, {found.repeats} repeats"
    )
    table = make_table("", "median", "from", "to", "", right=("median", "from", "to"), title=title)
    for each in found.measurements:
        table.add_row(each.title, *map(short, (each.median, each.low, each.high)), each.unit)
    table.add_row("peak memory", f"{found.peak_memory / 2**30:.2f}", "", "", "GiB")
    return table


def main(argv: Sequence[str]) -> int:
    return run_command(benchmark, argv, name="benchmark", stays="where the figures are; without a file, the figures")
