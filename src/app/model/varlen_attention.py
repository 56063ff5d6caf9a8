"""Attention of transformers' own layers on a GPU without a mask: packed rows as documents of variable length.

For packed rows transformers builds a block-diagonal mask [B, 1, T, T], with which no flash kernel runs. Here the
kernel is told where documents begin, and a row that is not packed is one document. An attention function without a
mask function of its own gets no mask from transformers (masking_utils, 5.17 to 5.23): padding must stand at the end of
rows, where a causal model's earlier tokens do not see it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from app.kernels.attention import Documents, Heads, attention, attention_backward

NAME = "varlen"
"""What `attn_implementation` is called."""


def register_varlen_attention() -> None:
    """Makes transformers know ``attn_implementation="varlen"``."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, varlen_attention)


def packed_documents(position_ids: Tensor, *, capacity: int | None = None) -> Documents:
    """Documents of packed rows: one begins wherever a position is 0.

    Args:
        position_ids: [B, T].
        capacity: bound on the number of documents; a fixed shape that needs no look at the values, for CUDA graphs.
    """
    flat = position_ids.flatten()
    if capacity is None:
        starts = torch.nonzero(flat == 0).flatten()
    else:
        places = torch.arange(flat.numel(), device=flat.device)
        starts = torch.where(flat == 0, places, flat.numel()).sort().values[:capacity]
    starts = nn.functional.pad(starts, (0, 1), value=flat.numel()).int()
    return Documents(starts=starts, longest=position_ids.shape[1])


def whole_rows(rows: int, length: int, device: torch.device) -> Documents:
    """Each of the rows is one document of ``length`` tokens."""
    starts = torch.arange(0, rows * length + 1, length, device=device, dtype=torch.int32)
    return Documents(starts=starts, longest=length, rows=rows)


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The signature of transformers' attention functions.

    Args:
        module: the attention layer.
        query: [B, H, T, D].
        key, value: [B, K, S, D]; S differs from T with a key-value cache, which goes to torch's own function.
        attention_mask: none is made for it.
        documents: of all B * T tokens in one row; None: each row is one.
        sliding_window: tokens that a query sees, itself included.
        scaling: only 1 / sqrt(D).
        kwargs: for torch's own function.

    Returns:
        [B, T, H, D].
    """
    rows, heads, length, width = query.shape
    if key.shape[2] != length:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return out, None
    assert scaling is None or abs(scaling - width**-0.5) < 1e-9, "the kernel scales by the square root of the width"
    fused = torch.cat((query, key, value), dim=1).transpose(1, 2).flatten(0, 1).flatten(1)  # [B * T, (H + 2 K) D]
    layout = Heads(queries=heads, keys=key.shape[1], head_dim=width, window=sliding_window)
    out = _Attention.apply(fused, layout, documents or whole_rows(rows, length, fused.device))  # type: ignore[no-untyped-call]
    return out.unflatten(1, (heads, width)).unflatten(0, (rows, length)), None


class _Attention(torch.autograd.Function):
    """`app.kernels.attention` under autograd."""

    @staticmethod
    def forward(ctx: Any, fused: Tensor, heads: Heads, documents: Documents) -> Tensor:
        out, lse = attention(fused, heads, documents)
        ctx.save_for_backward(fused, out, lse)
        ctx.heads, ctx.documents = heads, documents
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        fused, out, lse = ctx.saved_tensors
        parts = attention_backward(grad.contiguous(), fused, out, lse, ctx.heads, ctx.documents)
        return torch.cat([part.flatten(1) for part in parts], dim=1), None, None
