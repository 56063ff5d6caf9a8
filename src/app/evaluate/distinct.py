"""How varied an answer's words are."""

from functools import partial

from app.evaluate.metric import Metric, Part
from app.evaluate.samples import Answered


def part(n: int, sample: Answered) -> Part:
    """Distinct n-grams of an answer's words, of all of them."""
    words = sample.text.split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return (len(set(grams)) / len(grams), 1.0) if grams else None


def _metric(n: int) -> Metric:
    return Metric(
        name=f"distinct_{n}",
        title=f"Distinct-{n}",
        better="neither",
        unit=f"distinct share of an answer's {'words' if n == 1 else 'word pairs'}, 0 to 1; mean over answers",
        denominator=f"answers of at least {n} {'word' if n == 1 else 'words'}",
        excludes="shorter answers",
        source="Li et al. 2016 (arXiv 1510.03055), per answer, so that it does not fall with their number",
        part=partial(part, n),
    )


DISTINCT = (_metric(1), _metric(2))
