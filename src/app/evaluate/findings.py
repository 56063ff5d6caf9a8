"""What the figures mean: the headline, and what a reader should know or do about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.evaluate.bootstrap import Estimate
from app.evaluate.outcome import BeforeAfter
from app.pages.charts import Curve

Level = Literal["good", "warn", "bad"]
FORGETS = 0.05
"""Rise in perplexity on the general set that is worth a word; four times as much is a fault."""
ANSWERING = {
    "question_use": "heeding the question",
    "rouge_l": "overlap with the right answers",
    "exact_match": "exact matches",
}
"""Metrics that fall when a model learns what answers look like but not which answer is right -> at what it is worse."""
OVERFITS = 0.05
"""Rise of the validation loss above its lowest, as a share of it, that is worth a word."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A sentence and what follows from it."""

    level: Level
    text: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Headline:
    """Is it better? ``level`` says how it is shown."""

    level: Level
    verdict: str
    text: str


def headline(rows: Sequence[BeforeAfter]) -> Headline:
    """The verdict goes by the held-out perplexity, which looks at the most tokens, unless answers contradict it."""
    row = next(row for row in rows if row.metric.name == "perplexity")
    worse = [ANSWERING[row.metric.name] for row in rows if row.metric.name in ANSWERING and row.verdict == "worse"]
    level, text = {
        "better": ("good", "better than its base"),
        "worse": ("bad", "worse than its base"),
        "too few samples to tell": ("warn", "too few samples to tell"),
    }.get(row.verdict, ("warn", "no difference shown"))
    evidence = f"held-out perplexity {_number(row.base.value)} before, {_number(row.tuned.value)} after"
    if worse and text == "better than its base":
        level, text = "bad", f"better in form only, worse at {' and '.join(worse)}"
    if row.difference is not None:
        evidence += f" ({p_text(row.p)}, n = {row.difference.n:,}"
        evidence += f" in {row.difference.groups:,} groups)" if row.difference.groups < row.difference.n else ")"
    return Headline(level=level, verdict=text, text=evidence)  # type: ignore[arg-type]  # literals in a dict are str


def findings(
    rows: Sequence[BeforeAfter], forgotten: Estimate | None, curves: Mapping[str, Curve], *, left_out: int
) -> list[Finding]:
    """All that stands out, the worst first."""
    by_name = {row.metric.name: row for row in rows}
    found = [
        *_perplexity(by_name["perplexity"]),
        *_question_use(by_name.get("question_use")),
        *_forgetting(forgotten),
        *_overfitting(curves),
        *(finding for row in rows if (finding := _answers(row)) is not None),
    ]
    if left_out:
        found.append(
            Finding(
                level="warn",
                text=f"{left_out:,} held-out conversations are longer than data.max_length and were left out",
                remedy="their quality is not known; train and evaluate with a larger data.max_length",
            )
        )
    return sorted(found, key=lambda finding: ("bad", "warn", "good").index(finding.level))


def _perplexity(row: BeforeAfter) -> list[Finding]:
    if row.verdict == "worse":
        return [
            Finding(
                level="bad",
                text="The right answers to held-out questions have become less likely: what was learnt does not hold "
                "beyond the training rows",
                remedy="look at training rows: does each answer belong to its question? If so, lower model.lr or train "
                "fewer epochs",
            )
        ]
    if row.verdict == "no difference shown":
        return [
            Finding(
                level="warn",
                text="Held-out answers are no likelier than before",
                remedy="train longer or with a higher model.lr, or hold more rows out (a dozen groups or more) so that "
                "a small gain shows",
            )
        ]
    return []


def _question_use(row: BeforeAfter | None) -> list[Finding]:
    if row is None or row.verdict != "worse":
        return []
    before, after = _number(row.base.value), _number(row.tuned.value)
    return [
        Finding(
            level="bad",
            text="It heeds the question less than its base: the right question makes an answer likelier by "
            f"{after} nats per token, {before} before ({p_text(row.p)})",
            remedy="do answers and questions belong together in the training rows? Shuffled or shifted columns look so",
        )
    ]


def _forgetting(forgotten: Estimate | None) -> list[Finding]:
    if forgotten is None or forgotten.value is None or forgotten.low is None or forgotten.low <= 0:
        return []
    if forgotten.value < FORGETS:
        return []
    return [
        Finding(
            level="bad" if forgotten.value >= 4 * FORGETS else "warn",
            text=f"It forgets: perplexity on general text and simple questions rose by {forgotten.value:.0%}",
            remedy="lower model.lr or model.rank, train fewer epochs, or mix general conversations into the data",
        )
    ]


def _overfitting(curves: Mapping[str, Curve]) -> list[Finding]:
    losses = [value for _, value in curves.get("val/loss", [])]
    if len(losses) < 3 or losses[-1] <= min(losses) * (1 + OVERFITS):
        return []
    step = curves["val/loss"][losses.index(min(losses))][0]
    rise = losses[-1] / min(losses) - 1
    return [
        Finding(
            level="warn",
            text=f"The validation loss was lowest at step {step:,} and rose by {rise:.0%} after it",
            remedy="the adapter of the lowest loss is the one that is used; train fewer epochs, or on more rows",
        )
    ]


_REMEDIES = {
    "ended": "the end-of-turn token was not learnt: check that rows are not truncated, or raise --max_tokens",
    "repetition": "sample with a repetition penalty, or look for repetitive training rows",
    "rouge_l": "compare the examples below with their references",
    "general_passed": "lower model.lr, train fewer epochs, or mix general conversations into the data",
    "prompts_passed": "see below which checks fail that the base passes",
    "exact_match": "compare the examples below with their references",
}


def _answers(row: BeforeAfter) -> Finding | None:
    remedy = _REMEDIES.get(row.metric.name)
    if remedy is None or row.verdict not in ("better", "worse"):
        return None
    change = f"{row.metric.title}: {_number(row.base.value)} before, {_number(row.tuned.value)} after ({p_text(row.p)})"
    if row.verdict == "better":
        return Finding(level="good", text=change, remedy="")
    return Finding(level="bad", text=change, remedy=remedy)


def p_text(p: float | None) -> str:
    """A p value as people write it."""
    assert p is not None
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
