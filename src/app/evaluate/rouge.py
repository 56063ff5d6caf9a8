"""ROUGE of generated answers against the held-out ones."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from app.evaluate.metric import Metric, Part
from app.evaluate.samples import Answered

_KINDS = {
    "rouge1": ("ROUGE-1", "words shared"),
    "rouge2": ("ROUGE-2", "word pairs shared"),
    "rougeL": ("ROUGE-L", "longest common subsequence of words"),
    "rougeLsum": ("ROUGE-Lsum", "longest common subsequence of words, line by line"),
}


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(_KINDS), use_stemmer=True)


@lru_cache(maxsize=20_000)
def rouge(answer: str, reference: str) -> dict[str, float]:
    """F-measures by rouge-score's own names."""
    return {name: float(score.fmeasure) for name, score in _scorer().score(reference, answer).items()}


def part(kind: str, sample: Answered) -> Part:
    """The answer's F-measure of that kind."""
    return (rouge(sample.text, sample.reference)[kind], 1.0) if sample.reference else None


def _metric(kind: str, title: str, what: str) -> Metric:
    score: Callable[[Answered], Part] = partial(part, kind)
    return Metric(
        name=kind.replace("L", "_l"),
        title=title,
        better="higher",
        unit=f"F-measure of {what}, 0 to 1; mean over answers",
        denominator="answers",
        excludes="answers without a reference; within a text all but the letters a-z and digits, after stemming",
        source="rouge-score, Google's port of Lin 2004, with stemming",
        part=score,
    )


ROUGE = tuple(_metric(kind, *texts) for kind, texts in _KINDS.items())
