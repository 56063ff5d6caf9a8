"""From measured samples to figures: every metric of base and tuned model, and whether they differ."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.evaluate.bootstrap import Difference, Estimate, compare, estimate, holm
from app.evaluate.distinct import DISTINCT
from app.evaluate.ended import ENDED
from app.evaluate.exact_match import EXACT_MATCH
from app.evaluate.forgetting import GENERAL_ANSWERS, GENERAL_TEXT
from app.evaluate.general import GENERAL_PASSED
from app.evaluate.journal import Journal
from app.evaluate.length_ratio import LENGTH_RATIO
from app.evaluate.measure import MODELS, Model, answered, scored
from app.evaluate.metric import Metric, Part
from app.evaluate.perplexity import PERPLEXITY
from app.evaluate.plan import Plan, Question, Row
from app.evaluate.prompts import PROMPTS_PASSED
from app.evaluate.question_use import QUESTION_USE
from app.evaluate.repetition import REPETITION
from app.evaluate.rouge import ROUGE
from app.evaluate.token_accuracy import TOKEN_ACCURACY
from app.evaluate.token_f1 import TOKEN_F1

ROW_METRICS: dict[str, tuple[Metric, ...]] = {
    "heldout": (PERPLEXITY, TOKEN_ACCURACY),
    "general_text": (GENERAL_TEXT,),
    "general": (GENERAL_ANSWERS,),
}
ANSWER_METRICS: dict[str, tuple[Metric, ...]] = {
    "heldout": (*ROUGE, EXACT_MATCH, TOKEN_F1, ENDED, LENGTH_RATIO, REPETITION, *DISTINCT),
    "general": (GENERAL_PASSED,),
    "prompts": (PROMPTS_PASSED,),
}
METRICS = {
    metric.name: metric
    for metrics in (*ROW_METRICS.values(), (QUESTION_USE,), *ANSWER_METRICS.values())
    for metric in metrics
}
"""Every metric by its name."""
BUCKETS = (0, 64, 128, 256, 512, 1024, 2048)
SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A metric's samples.

    Attributes:
        metric: which one.
        task: whose samples: heldout, general_text, general or prompts.
        groups: of each sample.
        parts: model -> what each sample adds.
    """

    metric: Metric
    task: str
    groups: Sequence[str]
    parts: dict[str, list[Part]]


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """A metric of base and tuned model.

    Attributes:
        metric, task: which one, on what.
        base, tuned: the values.
        difference: tuned minus base; None where too few samples were counted.
        p: of the difference, corrected by Holm's method for the number of metrics.
        verdict: "better", "worse", "higher", "lower" or "no difference shown".
    """

    metric: Metric
    task: str
    base: Estimate
    tuned: Estimate
    difference: Difference | None
    p: float | None
    verdict: str


def collect(plan: Plan, journal: Journal) -> list[Measured]:
    """All metrics' samples, from a complete journal."""
    found = []
    for task, metrics in ROW_METRICS.items():
        rows = [row for row in plan.rows if row.task == task]
        found += _measured(task, metrics, rows, {m: [scored(journal, m, row) for row in rows] for m in MODELS})
    right, swapped = ([row for row in plan.rows if row.task == task] for task in ("right", "swapped"))
    pairs: dict[Model, list[Any]] = {
        m: [(scored(journal, m, own), scored(journal, m, other)) for own, other in zip(right, swapped, strict=True)]
        for m in MODELS
    }
    found += _measured("heldout", (QUESTION_USE,), right, pairs)
    for task, metrics in ANSWER_METRICS.items():
        asked = [each for each in plan.questions if each.task == task]
        samples: dict[Model, list[Any]] = {m: [answered(journal, m, each) for each in asked] for m in MODELS}
        if task == "prompts":
            prompts = {prompt.id: prompt for prompt in plan.prompts}
            for answers in samples.values():
                for index, each in enumerate(asked):
                    answer, checks = answers[index], prompts[each.id]
                    passed = answer is not None and all(result.passed for result in checks.results(answer.text))
                    answers[index] = passed if checks.checks else None
        found += _measured(task, metrics, asked, samples)
    return found


def _measured(
    task: str, metrics: Sequence[Metric], sources: Sequence[Row | Question], samples: dict[Model, list[Any]]
) -> list[Measured]:
    groups = [source.group for source in sources]
    return [
        Measured(
            metric=metric,
            task=task,
            groups=groups,
            parts={
                model: [None if sample is None else metric.part(sample) for sample in found]
                for model, found in samples.items()
            },
        )
        for metric in metrics
        if groups
    ]


def before_after(measured: Sequence[Measured], *, seed: int) -> list[BeforeAfter]:
    """Every metric of both models with its interval and the test of their difference."""
    rows = [
        BeforeAfter(
            metric=each.metric,
            task=each.task,
            base=estimate(each.metric, each.parts["base"], each.groups, seed=seed),
            tuned=estimate(each.metric, each.parts["tuned"], each.groups, seed=seed),
            difference=compare(each.metric, each.parts["base"], each.parts["tuned"], each.groups, seed=seed),
            p=None,
            verdict="too few samples to tell",
        )
        for each in measured
    ]
    corrected = iter(holm([row.difference.p for row in rows if row.difference is not None]))
    return [
        row
        if row.difference is None
        else replace(row, p=(p := next(corrected)), verdict=verdict(row.metric, row.difference.difference, p))
        for row in rows
    ]


def verdict(metric: Metric, difference: float, p: float) -> str:
    """What a difference with a corrected p says."""
    if p >= SIGNIFICANT or difference == 0:
        return "no difference shown"
    if metric.better == "neither":
        return "higher" if difference > 0 else "lower"
    return "better" if (difference > 0) == (metric.better == "higher") else "worse"


def by_length(plan: Plan, journal: Journal, *, seed: int) -> list[dict[str, Any]]:
    """Perplexity of both models by the rows' length in tokens, prompt included; buckets without rows are left out."""
    rows = [row for row in plan.rows if row.task == "heldout"]
    buckets = []
    for low, high in zip(BUCKETS, (*BUCKETS[1:], None), strict=True):
        inside = [
            r for r in rows if low < len(r.encoding.input_ids) and (high is None or len(r.encoding.input_ids) <= high)
        ]
        if inside:
            groups = [row.group for row in inside]
            values = {
                model: estimate(
                    PERPLEXITY, PERPLEXITY.parts([scored(journal, model, row) for row in inside]), groups, seed=seed
                )
                for model in MODELS
            }
            buckets.append({"above": low, "up_to": high, "base": values["base"], "tuned": values["tuned"]})
    return buckets
