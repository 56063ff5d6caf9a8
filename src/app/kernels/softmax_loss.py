"""Cross entropy of a chunk of logits, whose gradient takes the logits' own place: one read for each pass, one write.

In plain PyTorch the same takes a float32 copy and six passes over it: 7 ms of a step of 4 x 2,048 tokens over 32,000
words on an H100 (2026-11).
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.triton_support import jit, row_block, tl, use_triton


def softmax_loss_(logits: Tensor, targets: Tensor, *, gradient: bool) -> Tensor:
    """-log softmax(logits)[target] of each row, in float32 whatever the logits' type.

    Args:
        logits: [N, V], contiguous; with ``gradient`` overwritten by the gradient of the losses' sum.
        targets: [N] int64; a row with a negative one has no loss and no gradient.
        gradient: whether it is wanted.

    Returns:
        [N] float32, in nats.
    """
    # Not in the interpreter, which all CPU training would then wait for.
    if logits.is_cuda and use_triton(logits):
        return softmax_loss_triton_(logits, targets, gradient=gradient)
    counted, target = targets[:, None] >= 0, targets[:, None].clamp_min(0)  # [N, 1]
    wide = logits.float()
    normaliser = wide.logsumexp(dim=-1, keepdim=True)
    losses = (normaliser - wide.gather(-1, target)) * counted
    if gradient:
        # In place where the logits are float32: they are not needed again.
        wide.sub_(normaliser).exp_()
        wide.scatter_add_(-1, target, torch.full_like(target, -1, dtype=wide.dtype))
        torch.mul(wide, counted, out=wide)
        if wide is not logits:
            logits.copy_(wide)
    return losses[:, 0]


def softmax_loss_triton_(logits: Tensor, targets: Tensor, *, gradient: bool) -> Tensor:
    """`softmax_loss_` by the Triton kernel."""
    rows, words = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        block = min(row_block(words), 4096)
        _softmax_loss_kernel[(rows,)](logits, targets, losses, WORDS=words, GRADIENT=gradient, BLOCK=block, num_warps=8)
    return losses


@jit
def _softmax_loss_kernel(  # type: ignore[no-untyped-def]
    logits, targets, losses, WORDS: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):
    """A row a program: the largest logit and the sum are kept up block by block (arXiv 1805.02867)."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * WORDS
    target = tl.load(targets + row)
    column = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WORDS, BLOCK):
        x = tl.load(logits + start + column, mask=start + column < WORDS, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, x)
        # Both are -inf in lanes past the end of the row, and their difference would be NaN.
        total = total * _exp(largest, higher) + _exp(x, higher)
        largest = higher
    peak = tl.max(largest, axis=0)
    normaliser = peak + tl.log(tl.sum(total * _exp(largest, peak), axis=0))
    counted = target >= 0
    chosen = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(counted, normaliser - chosen, 0.0))
    if GRADIENT:
        tl.debug_barrier()
        for start in range(0, WORDS, BLOCK):
            mask = start + column < WORDS
            x = tl.load(logits + start + column, mask=mask, other=0.0).to(tl.float32)
            slope = tl.exp(x - normaliser) - tl.where(start + column == target, 1.0, 0.0)
            tl.store(logits + start + column, tl.where(counted, slope, 0.0).to(logits.dtype.element_ty), mask=mask)


@jit
def _exp(x, reference):  # type: ignore[no-untyped-def]
    """exp(x - reference), 0 where x is -inf."""
    return tl.where(x == float("-inf"), 0.0, tl.exp(x - reference))
