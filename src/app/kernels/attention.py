"""Causal attention over packed documents with torch's own flash attention, as two explicit calls.

Forward and backward are called by hand instead of through autograd, so that the memory policy decides what is kept
between them. Tokens of all documents stand in one row; ``documents`` says where each begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Heads:
    """How a fused projection [T, (queries + 2 * keys) * head_dim] splits into q, k and v.

    Attributes:
        queries, keys: numbers of heads; each key head serves queries / keys query heads.
        head_dim: width of a head.
        window: tokens that a query sees, itself included; None: all before it.
    """

    queries: int
    keys: int
    head_dim: int
    window: int | None = None

    def split(self, fused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views [T, heads, head_dim] of q, k and v."""
        heads = fused.unflatten(1, (-1, self.head_dim))
        q, k, v = heads.split((self.queries, self.keys, self.keys), dim=1)
        return q, k, v

    @property
    def _window(self) -> tuple[int, int]:
        return (-1, -1) if self.window is None else (self.window - 1, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Documents:
    """Where the packed documents begin: ``starts`` int32 [documents + 1] ends with T; ``longest`` bounds their length.

    A fixed number of documents is kept for CUDA graphs by repeating T at the end: such documents are empty.
    ``rows`` is their number where all are of the same length, T / rows.
    """

    starts: torch.Tensor
    longest: int
    rows: int | None = None


def attention(fused: torch.Tensor, heads: Heads, documents: Documents) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention output [T, queries * head_dim] and the log-sum-exp that the backward pass needs."""
    q, k, v = heads.split(fused)
    if not _use_flash(fused):
        return _reference(q, k, v, heads, documents).flatten(1), fused.new_empty(0)
    if _use_cudnn(heads, documents):
        rows = [_by_row(part, documents) for part in (q, k, v)]
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(*rows, None, True, 0.0, True, False)
        return out.transpose(1, 2).flatten(0, 1).flatten(1), lse
    left, right = heads._window
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        documents.starts,
        documents.starts,
        documents.longest,
        documents.longest,
        0.0,
        True,
        False,
        window_size_left=left,
        window_size_right=right,
    )
    return out.flatten(1), lse


def attention_backward(
    grad: torch.Tensor,
    fused: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    heads: Heads,
    documents: Documents,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v [T, heads, head_dim]; `app.kernels.rotary` puts them side by side."""
    q, k, v = heads.split(fused)
    grad = grad.unflatten(1, (-1, heads.head_dim))
    if not _use_flash(fused):
        with torch.enable_grad():
            leaf = fused.detach().requires_grad_()
            result = _reference(*heads.split(leaf), heads, documents)
        (leaf_grad,) = torch.autograd.grad(result, leaf, grad)
        return heads.split(leaf_grad)
    # Dropout is 0, so the random state that the forward pass returned is never read.
    if _use_cudnn(heads, documents):
        rows = [_by_row(part, documents) for part in (grad, q, k, v, out.unflatten(1, (-1, heads.head_dim)))]
        unused = torch.zeros((), dtype=torch.int64, device=fused.device)
        length = documents.longest
        grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *rows, lse, unused, unused, None, None, None, length, length, 0.0, True
        )
        of_q, of_k, of_v = (part.transpose(1, 2).flatten(0, 1) for part in grads)
        return of_q, of_k, of_v
    left, right = heads._window
    state = torch.empty(2, dtype=torch.uint64, device=fused.device)
    of_q, of_k, of_v = torch.ops.aten._flash_attention_backward(
        grad,
        q,
        k,
        v,
        out.unflatten(1, (-1, heads.head_dim)),
        lse,
        documents.starts,
        documents.starts,
        documents.longest,
        documents.longest,
        0.0,
        True,
        state,
        torch.empty(0, dtype=torch.uint64, device=fused.device),
        window_size_left=left,
        window_size_right=right,
    )
    return of_q, of_k, of_v


def has_flash(device: torch.device) -> bool:
    """Whether torch's flash attention runs there: Ampere and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _use_flash(fused: torch.Tensor) -> bool:
    return fused.is_cuda and fused.dtype in (torch.bfloat16, torch.float16)


def _use_cudnn(heads: Heads, documents: Documents) -> bool:
    """cuDNN's attention where it serves: equal rows on Hopper, 84 + 292 us against flash attention 2's 168 + 486.

    (2,048 tokens, 32 heads of 128, H100.) Over packed documents it rebuilt its plan at every call: 47 ms.
    """
    return (
        documents.rows is not None
        and documents.longest % 128 == 0
        and (heads.window is None or heads.window >= documents.longest)
        and heads.head_dim in (64, 128)
        and torch.cuda.get_device_capability() == (9, 0)
    )


def _by_row(part: torch.Tensor, documents: Documents) -> torch.Tensor:
    """[T, H, D] as a view [rows, H, T / rows, D]."""
    assert documents.rows is not None
    rows: torch.Tensor = part.unflatten(0, (documents.rows, -1))
    return rows.transpose(1, 2)


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: Heads, documents: Documents) -> torch.Tensor:
    """In plain PyTorch, with a mask: [T, queries, head_dim]."""
    position = torch.arange(q.shape[0], device=q.device)
    document = torch.bucketize(position, documents.starts, right=True)
    distance = position[:, None] - position[None, :]
    mask = (document[:, None] == document[None, :]) & (distance >= 0)
    if heads.window is not None:
        mask &= distance < heads.window
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1)
