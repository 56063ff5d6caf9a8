"""How likely a model finds given tokens; the logits of more than a chunk of them are never held."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

from app.data.padding import padded
from app.data.tokenize import Encoding
from app.evaluate.samples import Scored
from app.kernels.linear_cross_entropy import CHUNK_ELEMENTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens of a batch, padding included: it bounds what a forward pass takes however long the rows are (7B: 0.4 GB).
BATCH_TOKENS = 4096


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows of like length, longest first, so that a lack of memory shows at once.

    Args:
        lengths: tokens of each row.
        batch_size: the most rows of a batch; long rows get fewer.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        rows = max(1, min(batch_size, BATCH_TOKENS // lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


@torch.inference_mode()
def score(causal_lm: "PreTrainedModel", rows: Sequence[Encoding], *, pad_id: int) -> list[Scored]:
    """Scores of the rows' trained tokens, each given all tokens before it. A row's first token is never scored.

    Args:
        causal_lm: the transformers model itself.
        rows: a batch.
        pad_id: what shorter rows are filled up with; nothing attends to it.
    """
    batch = {name: tensor.to(causal_lm.device) for name, tensor in padded(rows, pad_id=pad_id).items()}
    places = batch["trained"][:, 1:]  # [B, T-1]
    targets = batch["input_ids"][:, 1:][places]  # [N]
    states = causal_lm.get_decoder()(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state[:, :-1][places]  # [N, D]
    head = causal_lm.get_output_embeddings().weight  # [V, D]
    step = max(1, CHUNK_ELEMENTS // head.shape[0])
    losses, right = [], []
    for start in range(0, len(targets), step):
        logits = F.linear(states[start : start + step], head).float()  # [n, V]
        target = targets[start : start + step]
        losses.append(F.cross_entropy(logits, target, reduction="none"))
        right.append(logits.argmax(-1) == target)
    counts = places.sum(1).tolist()
    loss = torch.cat(losses).double().cpu().split(counts) if losses else [torch.zeros(0)] * len(rows)
    hits = torch.cat(right).cpu().split(counts) if right else [torch.zeros(0)] * len(rows)
    return [
        Scored(loss=float(lost.sum()), right=int(hit.sum()), tokens=count, length=len(row.input_ids))
        for lost, hit, count, row in zip(loss, hits, counts, rows, strict=True)
    ]
