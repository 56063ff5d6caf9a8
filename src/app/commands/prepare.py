"""``python -m app prepare INPUT… --output data/``: turn what people have into what the trainer needs."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.commands import run_command
from app.errors import ConfigError
from app.families import Family, get_family
from app.terminal import is_quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def prepare_command(
    inputs: list[str],
    output: Path = Path("data"),
    check: bool = False,
    preview: int = 0,
    redact: bool = False,
    drop: str = "",
    weights: str = "",
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    stratify: bool = False,
    seed: int = 42,
    columns: dict[str, str] | None = None,
    shape: Literal["alpaca", "prompt-completion", "question-answer", "chat", "sharegpt", "text"] | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    similarity: float = 0.8,
    base: str | None = None,
    family: str | None = None,
    max_length: int | None = None,
    too_long: Literal["drop", "truncate", "error"] = "drop",
    workers: int | None = None,
) -> int:
    """Turn CSV, JSONL, Parquet or a Hugging Face data set into training data, with a report.

    Args:
        inputs: files, folders, or hub ids ("org/name?config=NAME&split=NAME&revision=COMMIT").
        output: folder for train, val, test and rejected rows and the report; its old content is replaced as a whole.
        check: only report, write nothing, and exit 1 if the data is not fit.
        preview: print so many samples as the model sees them, what is trained in colour.
        redact: mask e-mail addresses, phone and card numbers and API keys.
        drop: kinds of findings to reject instead of noting, such as "near-duplicate,contradiction,cut-off".
        weights: one for each input, such as "1,3": its rows are repeated so often in train; below 1 some are left out.
        val_fraction: share of the validation split.
        test_fraction: share of the test split.
        stratify: let the shares hold in each class of the label column.
        seed: of the split.
        columns: role and column where names cannot be guessed, as in --columns.question Frage; roles are messages,
            question, answer, context, system, text, group, id, label.
        shape: of the rows, where it should not be found out.
        encoding: of text files, where it should not be found out.
        delimiter: of CSV files, where it should not be found out.
        similarity: from which share of common words and word pairs two samples are near-duplicates.
        base: whose tokenizer counts tokens (hub id or folder); without it lengths are estimated.
        family: whose chat format is used for that and for the preview.
        max_length: the most tokens of a sample.
        too_long: what becomes of longer ones; truncate shortens questions, never answers.
        workers: processes; all cores by default for large inputs.
    """
    from app.data.prepare import prepare
    from app.data.progress import progress_bar
    from app.data.summary import summary

    if preview < 0:
        raise ConfigError(f"--preview {preview} is negative", remedy="say how many samples to print")
    chosen, tokenizer = _family_and_tokenizer(base, family)
    with progress_bar() as progress:
        report = prepare(
            inputs,
            None if check else output,
            weights=_numbers(weights),
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            stratify=stratify,
            columns=columns,
            shape=shape,
            encoding=encoding,
            delimiter={"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter),
            drop=[kind.strip() for kind in drop.split(",") if kind.strip()],
            redact=redact,
            similarity=similarity,
            tokenizer=tokenizer.backend_tokenizer.to_str() if tokenizer is not None else None,
            family=chosen.name if tokenizer is not None else None,
            max_length=max_length,
            too_long=too_long,
            workers=workers,
            progress=progress,
        )
    if not is_quiet():
        print(summary(report.value))
    if preview:
        from rich.console import Console

        from app.data.preview import preview as coloured
        from app.data.records import parse_record

        samples = [parse_record(json.loads(line)) for line in report.samples[:preview]]
        Console(force_terminal=True, file=sys.stdout).print(coloured(samples, chosen, tokenizer), soft_wrap=True)
    if check:
        print("fit for training" if report.value["fit"] else "not fit for training")
        return 0 if report.value["fit"] else 1
    if not report.value["counts"]["rows_kept"]:
        print(f"error: no row can be used; see {output / 'rejected.jsonl'}", file=sys.stderr)
        return 1
    print(f"wrote {output}: train.jsonl, val.jsonl, test.jsonl, rejected.jsonl, report.json, report.html")
    return 0


def _family_and_tokenizer(base: str | None, family: str | None) -> tuple[Family, "PreTrainedTokenizerFast | None"]:
    if base is None:
        return get_family(family or "smollm2"), None
    if family is None:
        raise ConfigError(
            "--base without --family", remedy="name the family of the base model, such as --family mistral"
        )
    from app.data.tokenize import load_tokenizer

    chosen = get_family(family)
    return chosen, load_tokenizer(base, chosen)


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")] if text.strip() else None
    except ValueError as fault:
        raise ConfigError(f"--weights {text!r} are no numbers", remedy="write one for each input: 1,3") from fault


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    # Being ended (by a scheduler, by closing a terminal) cleans up as ctrl-C does.
    before = signal.signal(signal.SIGTERM, _interrupted)
    try:
        return run_command(prepare_command, argv, name="prepare", stays="the data's path, --check, --preview")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `| head` has read enough; without this Python complains once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    finally:
        signal.signal(signal.SIGTERM, before)
