"""Token F1, for short answers."""

from collections import Counter

from app.evaluate.exact_match import EXACT_MATCH, is_short, normalise
from app.evaluate.metric import Metric, Part
from app.evaluate.samples import Answered


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words two texts share, as bags; 0 where they share none."""
    words, wanted = normalise(answer), normalise(reference)
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted)) if shared else 0.0


def part(sample: Answered) -> Part:
    """The answer's F1."""
    return (token_f1(sample.text, sample.reference), 1.0) if is_short(sample) else None


TOKEN_F1 = Metric(
    name="token_f1",
    title="Token F1",
    better="higher",
    unit="F-measure, 0 to 1; mean over answers",
    denominator=EXACT_MATCH.denominator,
    excludes=EXACT_MATCH.excludes,
    source=EXACT_MATCH.source,
    part=part,
)
