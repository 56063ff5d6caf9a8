"""How often the right next token was the model's first choice."""

from app.evaluate.metric import Metric, Part
from app.evaluate.samples import Scored


def part(sample: Scored) -> Part:
    """Tokens that were the first choice, of all trained tokens."""
    return (sample.right, sample.tokens) if sample.tokens else None


TOKEN_ACCURACY = Metric(
    name="token_accuracy",
    title="Tokens foreseen",
    better="higher",
    unit="share of tokens, 0 to 1",
    denominator="trained tokens: the answers with their end-of-turn tokens",
    excludes="prompts and padding; rows that were too long to train on",
    source="argmax of the model's scores, given the right tokens before",
    part=part,
    tokens=True,
)
