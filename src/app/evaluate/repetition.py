"""Does the model go round in circles?"""

from app.evaluate.metric import Metric, Part
from app.evaluate.samples import Answered

N = 4


def part(sample: Answered) -> Part:
    """4-grams of tokens that the answer held before, of all of them."""
    ids = sample.token_ids
    grams = [ids[start : start + N] for start in range(len(ids) - N + 1)]
    return (1 - len(set(grams)) / len(grams), 1.0) if grams else None


REPETITION = Metric(
    name="repetition",
    title="Repetition",
    better="lower",
    unit=f"share of an answer's token {N}-grams seen before in it, 0 to 1; mean over answers",
    denominator=f"answers of at least {N} tokens",
    excludes="shorter answers",
    source="seq-rep-4 of Welleck et al. 2020 (arXiv 1908.04319)",
    part=part,
    tokens=True,
)
