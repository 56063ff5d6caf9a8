"""Two or more evaluated runs, and their base, on the same samples: which is better, and is the difference real?"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from app.artifact import RunDirectory
from app.errors import AppError, ConfigError, RunError, several
from app.evaluate.bootstrap import Difference, Estimate, compare, estimate, holm
from app.evaluate.findings import p_text
from app.evaluate.metric import Metric, Part
from app.evaluate.outcome import METRICS, verdict
from app.evaluate.question_use import QUESTION_USE
from app.evaluate.suite import SCORES

BASE = "base"
_PARTS = {
    "rows": "held-out rows",
    "questions": "held-out questions or --max_tokens",
    "general": "general sets",
    "prompts": "benchmark prompts",
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One side of a comparison.

    Attributes:
        name: the run's path, or "base".
        fingerprints: of what it was evaluated on.
        base: hash of its base model and template.
        groups: metric -> group of each sample.
        parts: metric -> what each sample adds.
    """

    name: str
    fingerprints: Mapping[str, str]
    base: str
    groups: Mapping[str, Sequence[str]]
    parts: Mapping[str, Sequence[Part]]


@dataclass(frozen=True, kw_only=True)
class Duel:
    """Two contenders by one metric.

    Attributes:
        metric: which one.
        first, second: their names.
        difference: second minus first.
        p: corrected by Holm's method for all tests of the comparison.
        sentence: what is to be said of it.
    """

    metric: str
    first: str
    second: str
    difference: Difference
    p: float
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of it.

    Attributes:
        names: of the contenders.
        estimates: metric -> one value for each contender.
        duels: every pair by every metric.
        notes: what was left out and why.
    """

    names: Sequence[str]
    estimates: Mapping[str, Sequence[Estimate]]
    duels: Sequence[Duel]
    notes: Sequence[str]


def compare_runs(names: Sequence[str], *, metrics: Sequence[str] | None = None, seed: int = 42) -> Comparison:
    """Compares evaluated runs pairwise.

    Args:
        names: run directories, and "base" for the base model of the runs.
        metrics: names of those to compare by; None for all.
        seed: of the resampling.

    Raises:
        ConfigError: fewer than two are named, or one twice, or there is no such metric.
        RunError: one is not evaluated, or they were evaluated on different rows; all such faults are named.
    """
    contenders = _contenders(names)
    common = [name for name in contenders[0].parts if all(name in other.parts for other in contenders)]
    shared = [METRICS[name] for name in common if name in METRICS]
    if metrics is not None:
        unknown = sorted(set(metrics) - {metric.name for metric in shared})
        if unknown:
            raise ConfigError(
                f"the runs have no metric {', '.join(unknown)}",
                where="--metrics",
                remedy=f"choose among {', '.join(metric.name for metric in shared)}",
            )
        shared = [metric for metric in shared if metric.name in metrics]
    notes = []
    if len({contender.fingerprints["tokens"] for contender in contenders}) > 1:
        left = [metric.title for metric in shared if metric.tokens]
        shared = [metric for metric in shared if not metric.tokens]
        notes.append(f"other tokenizers count other tokens; left out: {', '.join(left)}")
    elif QUESTION_USE in shared and len({contender.fingerprints.get("pairs") for contender in contenders}) > 1:
        shared.remove(QUESTION_USE)
        notes.append(f"the runs paired questions and answers otherwise; left out: {QUESTION_USE.title}")
    duels = []
    for metric in shared:
        for first, second in combinations(contenders, 2):
            found = compare(
                metric, first.parts[metric.name], second.parts[metric.name], first.groups[metric.name], seed=seed
            )
            if found is not None:
                duels.append((metric, first.name, second.name, found))
    corrected = holm([found.p for *_, found in duels])
    return Comparison(
        names=[contender.name for contender in contenders],
        estimates={
            metric.name: [
                estimate(metric, each.parts[metric.name], each.groups[metric.name], seed=seed) for each in contenders
            ]
            for metric in shared
        },
        duels=[
            Duel(
                metric=metric.name,
                first=first,
                second=second,
                difference=found,
                p=p,
                sentence=sentence(metric, first, second, found, p),
            )
            for (metric, first, second, found), p in zip(duels, corrected, strict=True)
        ],
        notes=notes,
    )


def sentence(metric: Metric, first: str, second: str, difference: Difference, p: float) -> str:
    """ "B better than A, p = 0.01, n = 412", the better one first; or that nothing was shown."""
    facts = f"{p_text(p)}, n = {difference.n:,}"
    told = verdict(metric, difference.difference, p)
    if told == "no difference shown":
        return f"no difference shown between {first} and {second}, {facts}"
    if told == "worse":
        return f"{first} better than {second}, {facts}"
    return f"{second} {told} than {first}, {facts}"


def _contenders(names: Sequence[str]) -> list[Contender]:
    if len(names) < 2 or len(set(names)) < len(names):
        what = "name at least two runs" if len(names) < 2 else "a run is named twice"
        raise ConfigError(
            what,
            where="--runs",
            remedy="write for instance: compare --runs runs/a runs/b base (copies count as others)",
        )
    runs = [name for name in names if name != BASE]
    values, faults = {}, []
    for name in runs:
        try:
            values[name] = read_scores(RunDirectory(name))
        except AppError as fault:
            faults.append(f"{fault.what}; {fault.remedy}")
    if faults:
        raise RunError(several("runs that cannot be compared", faults), where="--runs", remedy="evaluate them first")
    first = values[runs[0]]
    for name, value in values.items():
        for part, text in _PARTS.items():
            if value["fingerprints"].get(part) != first["fingerprints"].get(part):
                faults.append(f"{name} and {runs[0]} were evaluated on different {text}")
        if BASE in names and value["base"] != first["base"]:
            faults.append(f"{name} and {runs[0]} have different base models: whose is meant by `base`?")
    if faults:
        raise RunError(
            several("the runs do not share their samples", faults),
            where="--runs",
            remedy="evaluate all of them on the same data with the same options; compare each base with its own run",
        )
    return [
        _contender(name, values[runs[0] if name == BASE else name], "base" if name == BASE else "tuned")
        for name in names
    ]


def _contender(name: str, value: Mapping[str, Any], model: str) -> Contender:
    metrics = value["metrics"]
    return Contender(
        name=name,
        fingerprints=value["fingerprints"],
        base=value["base"],
        groups={metric: found["groups"] for metric, found in metrics.items()},
        parts={
            metric: [None if part is None else (part[0], part[1]) for part in found[model]]
            for metric, found in metrics.items()
        },
    )


def read_scores(directory: RunDirectory) -> dict[str, Any]:
    """What an evaluation left for comparisons.

    Raises:
        RunError: there is none, or it is damaged.
    """
    path = directory.reports / SCORES
    remedy = f"run `python -m app evaluate --run {shlex.quote(str(directory.path))}`"
    if not path.is_file():
        raise RunError(f"{directory.path} has not been evaluated", where=str(path), remedy=remedy)
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"fingerprints", "base", "metrics"} - set(value)
    except (ValueError, TypeError) as fault:
        raise RunError(f"{path} is damaged: {fault}", remedy=remedy) from fault
    if missing:
        raise RunError(f"{path} is damaged: it has no {', '.join(sorted(missing))}", remedy=remedy)
    return value
