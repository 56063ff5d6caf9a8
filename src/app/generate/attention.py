"""Attention for generation on a CPU: transformers' eager one without its copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NAME = "grouped"
"""What ``attn_implementation`` is called."""


@contextmanager
def grouped_attention(config: Any) -> Iterator[None]:
    """Within it the model of that configuration attends by `_attend` where it would by eager attention."""
    before = config._attn_implementation
    if before == "eager":
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def register_grouped_attention() -> None:
    """Makes transformers know ``attn_implementation="grouped"``."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Query heads that share a key head are rows of one product, where eager attention copies keys and values for each.

    Args:
        query: [B, H, Q, D].
        key, value: [B, G, L, D]; H is a multiple of G.
        mask: added to the scores. # [B, 1, Q, L]

    Returns:
        [B, Q, H, D], and no weights.
    """
    batch, heads, count, width = query.shape
    groups, length = key.shape[1], key.shape[2]
    scores = torch.matmul(query.reshape(batch, groups, -1, width), key.transpose(2, 3)).mul_(scaling)
    scores = scores.view(batch, groups, heads // groups, count, length).add_(mask[:, :, None])
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    out = torch.matmul(weights.view(batch, groups, -1, length), value)
    return out.view(batch, heads, count, width).transpose(1, 2).contiguous(), None
