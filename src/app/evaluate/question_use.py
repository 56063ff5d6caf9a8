"""Does the answer depend on the question? A model that was trained on answers of other questions forgets to look."""

from app.evaluate.metric import Metric, Part
from app.evaluate.samples import Scored

ROWS = 32
"""Held-out rows that are scored with their own and with another question."""


def part(sample: tuple[Scored, Scored]) -> Part:
    """What the right question saves of the loss under a wrong one.

    Args:
        sample: the last answer after its own question, and after that of another row.
    """
    right, wrong = sample
    return (wrong.loss - right.loss, right.tokens) if right.tokens else None


QUESTION_USE = Metric(
    name="question_use",
    title="Use of the question",
    better="higher",
    unit="nats per token by which its own question makes an answer likelier than another row's",
    denominator="tokens of last answers with their end-of-turn tokens",
    excludes=f"all but {ROWS} rows, drawn with a fixed seed; pairs that are too long to train on",
    source="pointwise mutual information of question and answer, by the model",
    part=part,
    tokens=True,
)
