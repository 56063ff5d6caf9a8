"""The suite: a run and its base on the same held-out rows, and the report of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from app.artifact import Manifest, RunDirectory, write_atomic
from app.cache import cache_key, content_hash
from app.errors import require_ranges
from app.evaluate.bootstrap import Estimate
from app.evaluate.device import device_name
from app.evaluate.forgetting import forgetting
from app.evaluate.gate import check_gate, parse_conditions
from app.evaluate.heldout import Split, choose_split, open_heldout
from app.evaluate.journal import Journal
from app.evaluate.measure import is_complete, measure
from app.evaluate.outcome import ANSWER_METRICS, ROW_METRICS, Measured, before_after, by_length, collect
from app.evaluate.plan import SEED, make_plan
from app.evaluate.prompts import read_prompts
from app.evaluate.question_use import QUESTION_USE
from app.evaluate.report import as_text, build_report, write_report
from app.generate.session import open_run
from app.model.load import Device, pick_device

SAMPLES, SCORES = "evaluation-samples.jsonl", "evaluation-scores.json"


def evaluate_run(
    run: Path,
    *,
    split: Split | None = None,
    data: str | None = None,
    answers: int = 100,
    max_tokens: int = 256,
    general: bool = True,
    prompts: Path | None = None,
    fail_if: Sequence[str] = (),
    batch_size: int = 8,
    device: Device = "auto",
    progress: Progress,
) -> dict[str, Any]:
    """Measures the run and its base, writes report.json and report.html, and returns the former.

    Every sample's result is kept in ``reports/evaluation-samples.jsonl`` as it comes: an interrupted evaluation of the
    same run, data and options goes on from there, and a finished one is reported again without opening the model.

    Args:
        run: the run directory.
        split: what to measure on; by default the test split, or where that is empty the validation split.
        data: where the data is now, if it has moved.
        answers: how many held-out questions (always the same of the same rows) are answered greedily.
        max_tokens: of each answer.
        general: whether forgetting is measured.
        prompts: a file of benchmark prompts.
        fail_if: conditions of the gate.
        batch_size: rows at a time.
        device: where to run.
        progress: shows how far it is.

    Raises:
        ConfigError: an option is out of range, or conditions or prompts cannot be read.
        RunError, DataError, ModelError, MachineError: see `open_run` and `open_heldout`.
    """
    most = 10**9
    require_ranges(
        "", {"answers": (answers, 0, most), "max_tokens": (max_tokens, 1, most), "batch_size": (batch_size, 1, most)}
    )
    tasks = [
        *(("heldout",) if answers else ()),
        *(("general",) if general else ()),
        *(("prompts",) if prompts else ()),
    ]
    conditions = parse_conditions(fail_if, gate_names(tasks))
    directory = RunDirectory(run)
    manifest = directory.read_manifest()
    adapter = directory.require_adapter()
    benchmark = read_prompts(prompts, seed=SEED, max_tokens=max_tokens) if prompts else []
    module = open_heldout(manifest, data=data)
    plan = make_plan(
        module,
        choose_split(module, split),
        answers=answers,
        max_tokens=max_tokens,
        general=general,
        prompts=benchmark,
    )
    target = pick_device(device)
    key = cache_key(
        adapter=content_hash(adapter), base=manifest.base, plan=plan.fingerprints, batch=batch_size, device=target.type
    )
    with Journal(directory.reports / SAMPLES, key) as journal:
        if not is_complete(plan, journal):
            measure(open_run(run, device=device), plan, journal, batch_size=batch_size, progress=progress)
        measured = collect(plan, journal)
        rows = before_after(measured, seed=manifest.seed)
        forgotten = measure_forgetting(measured, seed=manifest.seed)
        values = {row.metric.name: row.tuned.value for row in rows}
        values["forgetting"] = forgotten.value if forgotten else None
        report = build_report(
            directory,
            manifest,
            plan,
            journal,
            rows,
            by_length=by_length(plan, journal, seed=manifest.seed),
            forgotten=forgotten,
            gate=check_gate(conditions, values),
            device=device_name(target),
        )
    write_report(directory.reports, report)
    write_atomic(directory.reports / SCORES, as_text(scores(manifest, measured, plan.fingerprints)))
    return report


def gate_names(tasks: Sequence[str]) -> list[str]:
    """What a gate can look at when these tasks are measured beside the held-out rows."""
    names = [*(metric.name for metric in ROW_METRICS["heldout"]), QUESTION_USE.name]
    names += [metric.name for task in tasks for metric in ANSWER_METRICS[task]]
    if "general" in tasks:
        names += ["forgetting", *(m.name for task in ("general_text", "general") for m in ROW_METRICS[task])]
    return names


def measure_forgetting(measured: Sequence[Measured], *, seed: int) -> Estimate | None:
    """Forgetting from the two halves of the general set; None where it was not measured."""
    halves = [each for each in measured if each.metric.name in ("general_text", "general_answers")]
    if not halves:
        return None
    return forgetting([(each.parts["base"], each.parts["tuned"]) for each in halves], seed=seed)


def scores(manifest: Manifest, measured: Sequence[Measured], fingerprints: dict[str, str]) -> dict[str, Any]:
    """What `compare` needs of this run: each metric's samples, and what they are of."""
    return {
        "fingerprints": fingerprints,
        "seed": manifest.seed,
        "base": cache_key(base=manifest.base, template=manifest.golden.template_hash),
        "metrics": {each.metric.name: {"groups": each.groups, **each.parts} for each in measured},
    }
