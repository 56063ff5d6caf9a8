"""Which attention a model generates with: another than it was loaded with, and on a CPU one of our own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NAME = "grouped"
"""What ``attn_implementation`` is called."""


@contextmanager
def attention_instead(config: Any, *, of: str, name: str) -> Iterator[None]:
    """Within it the model of that configuration attends by ``name`` where it would by ``of``."""
    before = config._attn_implementation
    if before == of:
        config._attn_implementation = name
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
    """transformers' eager attention without its copies: query heads that share a key head are rows of one product.

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
