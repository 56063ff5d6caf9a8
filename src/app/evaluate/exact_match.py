"""Exact match, for short answers."""

import re
import string

from app.evaluate.metric import Metric, Part
from app.evaluate.samples import Answered

SHORT = 10
"""Words a reference may have to count as a short answer."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> list[str]:
    """Words in lower case without ASCII punctuation and English articles, as SQuAD's script compares them."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def is_short(sample: Answered) -> bool:
    """Whether the reference is a short answer; one without any word cannot be matched."""
    return 0 < len(normalise(sample.reference)) <= SHORT


def part(sample: Answered) -> Part:
    """1 if the normalised texts are equal."""
    return (float(normalise(sample.text) == normalise(sample.reference)), 1.0) if is_short(sample) else None


EXACT_MATCH = Metric(
    name="exact_match",
    title="Exact match",
    better="higher",
    unit="share of answers, 0 to 1",
    denominator=f"answers whose reference has at most {SHORT} words",
    excludes="longer references, and references without a word",
    source="SQuAD 1.1, evaluate-v1.1.py (Rajpurkar et al. 2016)",
    part=part,
    binary=True,
)
