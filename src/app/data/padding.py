"""Rows of different lengths as one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.data.tokenize import Encoding


def padded(rows: Sequence[Encoding], *, pad_id: int) -> dict[str, Tensor]:
    """Rows filled up at their end to the longest: input_ids [B, T] and attention_mask [B, T], int64; trained [B, T].

    Args:
        rows: at least one.
        pad_id: what shorter rows are filled up with; nothing attends to it.
    """
    width = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)  # [B, T]
    attention_mask = torch.zeros((len(rows), width), dtype=torch.int64)
    trained = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[index, :length] = torch.tensor(row.input_ids)
        attention_mask[index, :length] = 1
        trained[index, :length] = torch.tensor(row.trained)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "trained": trained}
