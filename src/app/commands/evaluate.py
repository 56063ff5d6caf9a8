"""``python -m app evaluate``: is the tuned model better than its base?"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.artifact import RunDirectory
from app.commands import run_command
from app.terminal import is_quiet, make_table, progress_bars

if TYPE_CHECKING:
    from rich.table import Table

PROMPTS = Path("configs/prompts.json")


def evaluate(
    run: Path,
    split: Literal["auto", "test", "val"] = "auto",
    data: str | None = None,
    answers: int = 100,
    max_tokens: int = 256,
    general: bool = True,
    prompts: str = "auto",
    fail_if: list[str] | None = None,
    lm_eval: list[str] | None = None,
    lm_eval_tasks: Path | None = None,
    lm_eval_limit: int | None = None,
    lm_eval_chat: bool = False,
    wandb: Literal["auto", "off", "offline", "online"] = "auto",
    batch_size: int = 8,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> int:
    """Measures a run and its base on the same held-out rows; writes reports/report.html and report.json in the run.

    An interrupted evaluation goes on where it stopped. Exit status 1: a condition of --fail-if holds.

    Args:
        run: The run directory that fit wrote.
        split: What to measure on; auto is the test split, or where that is empty the validation split.
        data: Where the run's data is now, if it has moved.
        answers: How many held-out questions are answered; 0 for none.
        max_tokens: Of each answer.
        general: Whether forgetting is measured, on the general set that is shipped.
        prompts: A JSON file of benchmark prompts; auto is configs/prompts.json where it exists; none for none.
        fail_if: Conditions such as "perplexity>5.0" and "forgetting>5%"; may be repeated.
        lm_eval: Instead of all this, run these tasks of lm-evaluation-harness on base and run.
        lm_eval_tasks: A folder with tasks of your own in lm-evaluation-harness's YAML; only these are known then.
        lm_eval_limit: Of each task, only so many documents.
        lm_eval_chat: Put these tasks' documents into the family's chat format.
        wandb: Log the figures to Weights & Biases too; auto does as fit did. TensorBoard always gets them.
        batch_size: Rows at a time.
        device: Where to run.
    """
    from rich.console import Console

    if lm_eval:
        from app.evaluate.harness import evaluate_tasks
        from app.evaluate.report import LM_EVAL

        results = evaluate_tasks(
            run,
            lm_eval,
            folder=lm_eval_tasks,
            limit=lm_eval_limit,
            chat=lm_eval_chat,
            batch_size=batch_size,
            device=device,
        )
        if not is_quiet():
            Console().print(harness_table(run, results))
        print(f"figures: {RunDirectory(run).reports / LM_EVAL}")
        return 0

    from app.card import write_adapter_card
    from app.evaluate.report import PAGE
    from app.evaluate.suite import evaluate_run
    from app.evaluate.tracking import track
    from app.pages.run import update_run_page

    console = Console()
    with progress_bars() as progress:
        report = evaluate_run(
            run,
            split=None if split == "auto" else split,
            data=data,
            answers=answers,
            max_tokens=max_tokens,
            general=general,
            prompts=prompts_file(prompts),
            fail_if=fail_if or (),
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    track(run, report, wandb=wandb)
    directory = RunDirectory(run)
    write_adapter_card(directory, directory.adapter)
    update_run_page(directory)
    show(report, console)
    console.print(f"report: {run / 'reports' / PAGE}", soft_wrap=True)
    failed = [result for result in report["gate"] if result["failed"]]
    for result in failed:
        value = "could not be measured" if result["value"] is None else f"is {result['value']:.4g}"
        console.print(f"[red]failed:[/red] {result['condition']} (it {value})", soft_wrap=True, highlight=False)
    return 1 if failed else 0


def prompts_file(option: str) -> Path | None:
    """The file that ``--prompts`` names."""
    if option == "auto":
        return PROMPTS if PROMPTS.is_file() else None
    return None if option == "none" else Path(option)


def show(report: Mapping[str, Any], console: Any) -> None:
    """The figures and what stands out, in the terminal; the verdict alone where that is wanted."""
    from rich.markup import escape

    lost = report["forgetting"]
    if not is_quiet():
        console.print(figures(report))
    if lost and lost["value"] is not None and not is_quiet():
        between = "" if lost["low"] is None else f" (95 %: {lost['low']:+.1%} to {lost['high']:+.1%})"
        console.print(f"forgetting: perplexity on general text and questions {lost['value']:+.1%}{between}")
    head = report["headline"]
    colours = {"good": "green", "warn": "yellow", "bad": "red"}
    console.print(
        f"[bold {colours[head['level']]}]{head['verdict']}[/]: {escape(head['text'])}", highlight=False, soft_wrap=True
    )
    for found in report["findings"]:
        if found["level"] != "good" and not is_quiet():
            remedy = f" [dim]{escape(found['remedy'])}[/]" if found["remedy"] else ""
            text = f"[{colours[found['level']]}]•[/] {escape(found['text'])}.{remedy}"
            console.print(text, highlight=False, soft_wrap=True)


def figures(report: Mapping[str, Any]) -> "Table":
    """Every metric before and after, with its interval and the verdict."""
    from app.evaluate.findings import p_text

    colours = {"better": "green", "worse": "red"}
    numbers = ("base", "tuned", "95 %", "n")
    title = f"{report['run']['path']}: {report['split']} split"
    table = make_table("", *numbers, "tuned is", right=numbers, title=title)
    for column in table.columns[:-1]:
        column.no_wrap = True
    for metric in report["metrics"]:
        base, tuned = metric["base"], metric["tuned"]
        if not tuned["n"]:
            continue
        between = "" if tuned["low"] is None else f"{tuned['low']:.3g}–{tuned['high']:.3g}"
        verdict = metric["verdict"].removesuffix(" shown")
        told = f"[{colours[verdict]}]{verdict}[/]" if verdict in colours else verdict
        p = f", {p_text(metric['p'])}" if verdict in ("better", "worse", "higher", "lower") else ""
        values = ("–" if found["value"] is None else f"{found['value']:.3f}" for found in (base, tuned))
        table.add_row(metric["title"], *values, between, f"{tuned['n']:,}", told + p)
    return table


def harness_table(run: Path, results: Mapping[str, Any]) -> "Table":
    """What lm-evaluation-harness found, base against run."""
    models = ("base", "tuned")
    title = f"{run}: lm-evaluation-harness {results['version']}"
    table = make_table("task", "metric", *models, right=models, title=title)
    for row in results["results"]:
        values = (
            f"{row[model]:.4f}" + ("" if row[f"{model}_stderr"] is None else f" ± {row[f'{model}_stderr']:.4f}")
            for model in ("base", "tuned")
        )
        table.add_row(row["task"], row["metric"], *values)
    return table


def main(argv: Sequence[str]) -> int:
    try:
        return run_command(evaluate, argv, name="evaluate", stays="the verdict, the report's path, failures")
    except KeyboardInterrupt:
        print("stopped: what was measured is kept; the same command goes on from here", file=sys.stderr)
        return 130
