"""Perplexity of the held-out answers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from app.generate.session import Session
from app.model.module import Batch, summed_loss


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How surprised the model is by the answers; lower is better, 1 is perfect.

    Attributes:
        perplexity: exp(loss), torchmetrics' definition over the trained tokens alone.
        loss: mean negative log likelihood, nats per trained token, each token weighted equally.
        tokens: the denominator: trained tokens, that is the answers with their end-of-turn tokens. Prompts and
            padding are left out.
        rows: conversations they are from.
    """

    perplexity: float
    loss: float
    tokens: int
    rows: int


@torch.no_grad()
def measure_perplexity(
    session: Session, batches: Iterable[Batch], *, progress: Callable[[int], None] | None = None
) -> Perplexity:
    """The session's perplexity on batches of held-out rows; no logits beyond a chunk are ever held.

    Args:
        session: base or tuned model.
        batches: padded rows with their train-masks, on any device.
        progress: called with the number of rows after each batch.
    """
    causal_lm = session.causal_lm
    total, tokens, rows = 0.0, 0, 0
    for batch in batches:
        moved: Batch = {
            "input_ids": batch["input_ids"].to(causal_lm.device),
            "attention_mask": batch["attention_mask"].to(causal_lm.device),
            "trained": batch["trained"].to(causal_lm.device),
        }
        loss, count = summed_loss(causal_lm, moved)
        total += float(loss)
        tokens += int(count)
        rows += batch["input_ids"].shape[0]
        if progress is not None:
            progress(batch["input_ids"].shape[0])
    mean = total / tokens
    return Perplexity(perplexity=math.exp(mean), loss=mean, tokens=tokens, rows=rows)
