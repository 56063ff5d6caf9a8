"""Perplexity of given answers."""

from app.evaluate.metric import Metric, Part
from app.evaluate.samples import Scored


def part(sample: Scored) -> Part:
    """The sample's summed loss over its trained tokens; every token weighs the same."""
    return (sample.loss, sample.tokens) if sample.tokens else None


PERPLEXITY = Metric(
    name="perplexity",
    title="Perplexity",
    better="lower",
    unit="exp(nats per trained token); 1 is perfect",
    denominator="trained tokens: the answers with their end-of-turn tokens",
    excludes="prompts and padding; rows that were too long to train on",
    source="torchmetrics.text.Perplexity over the trained tokens alone",
    part=part,
    exponential=True,
    tokens=True,
)
