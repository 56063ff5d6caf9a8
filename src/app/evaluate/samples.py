"""What is measured of one model on one row; the metrics are computed from these."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How likely a model finds a given answer.

    Attributes:
        loss: negative log likelihood of the trained tokens, nats, summed.
        right: trained tokens that were the model's first choice.
        tokens: trained tokens.
        length: all tokens of the row, prompt included.
    """

    loss: float
    right: int
    tokens: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a model wrote.

    Attributes:
        text: the answer.
        token_ids: as chosen, the stop token included if it came.
        ended: whether it ended by itself and not by the limit.
        reference: what should have been written; empty where there is none.
    """

    text: str
    token_ids: tuple[int, ...]
    ended: bool
    reference: str
