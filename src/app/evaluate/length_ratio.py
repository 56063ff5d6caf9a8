"""Are answers as long as they should be?"""

from app.evaluate.metric import Metric, Part
from app.evaluate.samples import Answered


def part(sample: Answered) -> Part:
    """Words written and words of the reference."""
    wanted = len(sample.reference.split())
    return (float(len(sample.text.split())), float(wanted)) if wanted else None


LENGTH_RATIO = Metric(
    name="length_ratio",
    title="Length against reference",
    better="neither",
    unit="words written per word of the references; 1 is as long",
    denominator="words of the references",
    excludes="answers without a reference; what the token limit cut off is not counted as written",
    source="ratio of sums",
    part=part,
)
