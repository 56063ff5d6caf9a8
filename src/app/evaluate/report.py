"""report.json: everything an evaluation found, in the form of ``report.schema.json``."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from app import __version__
from app.artifact import Manifest, RunDirectory, write_atomic
from app.evaluate.bootstrap import CONFIDENCE, RESAMPLES, Estimate
from app.evaluate.curves import read_curves
from app.evaluate.findings import findings, headline
from app.evaluate.forgetting import DEFINITION, UNIT
from app.evaluate.gate import GateResult
from app.evaluate.journal import Journal
from app.evaluate.measure import MODELS, answered
from app.evaluate.metric import Metric
from app.evaluate.outcome import SIGNIFICANT, BeforeAfter
from app.evaluate.page import page
from app.evaluate.plan import Plan
from app.evaluate.rouge import rouge

REPORT, PAGE = "report.json", "report.html"
SPEED, LM_EVAL = "benchmark.json", "lm-eval.json"
SCHEMA = 1
SHOWN = 3
"""Best and worst examples of each that are marked so."""


def build_report(
    directory: RunDirectory,
    manifest: Manifest,
    plan: Plan,
    journal: Journal,
    rows: Sequence[BeforeAfter],
    *,
    by_length: Sequence[Mapping[str, Any]],
    forgotten: Estimate | None,
    gate: Sequence[GateResult],
    device: str,
) -> dict[str, Any]:
    """The whole report as JSON values; checked against its schema.

    Args:
        directory: the run.
        manifest: its manifest.
        plan: what was asked.
        journal: what was measured and answered.
        rows: the metrics.
        by_length: perplexity by length.
        forgotten: forgetting, None if the general set was left out.
        gate: conditions that were checked.
        device: what it was measured on.
    """
    curves = read_curves(directory.logs)
    report = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": {
            "path": str(directory.path),
            "status": manifest.status,
            "base": manifest.base.id,
            "family": manifest.base.family,
            "created": manifest.created,
            "result": manifest.result,
        },
        "split": plan.split,
        "headline": dataclasses.asdict(headline(rows)),
        "findings": [dataclasses.asdict(each) for each in findings(rows, forgotten, curves, left_out=plan.left_out)],
        "metrics": [_metric(row) for row in rows],
        "by_length": [
            {**bucket, **{model: dataclasses.asdict(bucket[model]) for model in MODELS}} for bucket in by_length
        ],
        "forgetting": None
        if forgotten is None
        else {**dataclasses.asdict(forgotten), "unit": UNIT, "definition": DEFINITION},
        "gate": [dataclasses.asdict(result) for result in gate],
        "examples": examples(plan, journal),
        "prompts": prompts(plan, journal),
        "curves": curves,
        "speed": _if_there(directory.reports / SPEED),
        "lm_eval": _if_there(directory.reports / LM_EVAL),
        "fingerprints": plan.fingerprints,
        "environment": {
            "device": device,
            "quantization": manifest.base.quantization,
            "dtype": manifest.base.dtype,
            "seed": manifest.seed,
            "trained_with": {"commit": manifest.git_commit, **manifest.versions},
            "evaluated_with": {"app": __version__},
        },
        "configuration": manifest.config,
        "statistics": {
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": manifest.seed,
            "significance": SIGNIFICANT,
            "intervals": "percentile bootstrap over groups (what the split keeps together)",
            "tests": "paired bootstrap over groups; McNemar's exact test for binary metrics of independent rows",
            "correction": f"Holm, over the {sum(row.p is not None for row in rows)} metrics of this report",
        },
    }
    finite: dict[str, Any] = _finite(report)
    check_report(finite)
    return finite


def check_report(value: Any) -> None:
    """Asserts that a report has the form its schema promises."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    schema = json.loads(files("app.evaluate").joinpath("report.schema.json").read_text("utf-8"))
    fault = best_match(Draft202012Validator(schema).iter_errors(value))
    assert fault is None, f"{fault.json_path}: {fault.message}"


def describe(metric: Metric) -> dict[str, str]:
    """A metric's definition."""
    names = ("name", "title", "better", "unit", "denominator", "excludes", "source")
    return {name: getattr(metric, name) for name in names}


def _metric(row: BeforeAfter) -> dict[str, Any]:
    return {
        **describe(row.metric),
        "task": row.task,
        "base": dataclasses.asdict(row.base),
        "tuned": dataclasses.asdict(row.tuned),
        "difference": None if row.difference is None else dataclasses.asdict(row.difference),
        "p": row.p,
        "verdict": row.verdict,
    }


def examples(plan: Plan, journal: Journal) -> list[dict[str, Any]]:
    """Every answered held-out question, by the tuned answer's ROUGE-L, best first; the ends are marked."""
    found: list[dict[str, Any]] = []
    for question in (each for each in plan.questions if each.task == "heldout"):
        answers = {model: answered(journal, model, question) for model in MODELS}
        texts: dict[str, str] = {model: answer.text for model, answer in answers.items() if answer is not None}
        if len(texts) == len(MODELS):
            scores = {model: rouge(text, question.reference)["rougeL"] for model, text in texts.items()}
            found.append(
                {
                    "id": question.id.partition(":")[2],
                    "group": question.group,
                    "question": question.messages[-1].content,
                    "reference": question.reference,
                    **texts,
                    "rouge_l": scores,
                }
            )
    found.sort(key=lambda example: -example["rouge_l"]["tuned"])
    ends = min(SHOWN, len(found) // 2)
    for place, example in enumerate(found):
        example["place"] = "best" if place < ends else "worst" if place >= len(found) - ends else "between"
    return found


def prompts(plan: Plan, journal: Journal) -> list[dict[str, Any]]:
    """Every benchmark prompt with both answers and their checks."""
    by_id = {prompt.id: prompt for prompt in plan.prompts}
    found: list[dict[str, Any]] = []
    for question in (each for each in plan.questions if each.task == "prompts"):
        prompt = by_id[question.id]
        sides: dict[str, Any] = {}
        for model in MODELS:
            answer = answered(journal, model, question)
            text = "" if answer is None else answer.text
            sides[model] = {
                "text": text,
                "ended": answer is not None and answer.ended,
                "checks": [dataclasses.asdict(result) for result in prompt.results(text)],
            }
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        found.append({"id": prompt.id, "category": prompt.category, "messages": messages, **sides})
    return found


def _if_there(path: Path) -> Any:
    """What another command found of this run, None if it has not been called."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _finite(value: Any) -> Any:
    """JSON knows no infinity and no NaN: they become null. Tuples become lists."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(value: Any) -> str:
    """JSON as it is written to a file."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes report.json and the page of it."""
    write_atomic(folder / REPORT, as_text(report))
    write_atomic(folder / PAGE, page(report))
