"""Do answers end by themselves?"""

from app.evaluate.metric import Metric, Part
from app.evaluate.samples import Answered


def part(sample: Answered) -> Part:
    """1 if the answer's end was the model's own choice."""
    return float(sample.ended), 1.0


ENDED = Metric(
    name="ended",
    title="Ended by itself",
    better="higher",
    unit="share of answers, 0 to 1",
    denominator="answers",
    excludes="nothing",
    source="a stop token of the family came before the token limit",
    part=part,
    binary=True,
)
