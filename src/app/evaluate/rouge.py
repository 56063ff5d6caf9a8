"""ROUGE of generated answers against the held-out ones."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rouge:
    """Overlap with the reference answers; F-measures from 0 to 1, mean over answers; higher is better.

    Computed by rouge-score (Google's port of Lin 2004) with stemming. Its tokenizer keeps runs of a-z and 0-9
    only: punctuation, indentation and non-Latin scripts do not count.

    Attributes:
        rouge1, rouge2: shared words and word pairs.
        rouge_l: longest common subsequence of words.
        rouge_lsum: the same, by lines.
        answers: the denominator.
    """

    rouge1: float
    rouge2: float
    rouge_l: float
    rouge_lsum: float
    answers: int


def measure_rouge(answers: Sequence[str], references: Sequence[str]) -> Rouge:
    """ROUGE of each answer against the reference at its place."""
    from rouge_score.rouge_scorer import RougeScorer

    assert len(answers) == len(references) > 0
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]

    def mean(name: str) -> float:
        return sum(float(score[name].fmeasure) for score in scores) / len(scores)

    return Rouge(
        rouge1=mean("rouge1"),
        rouge2=mean("rouge2"),
        rouge_l=mean("rougeL"),
        rouge_lsum=mean("rougeLsum"),
        answers=len(answers),
    )
