"""Rotary position embedding (arXiv 2104.09864) of all query and key heads of a fused projection, in place."""

from __future__ import annotations

import torch

from app.kernels.triton_support import jit, row_block, tl, use_triton


def rotate_(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, head_dim: int, count: int, inverse: bool = False
) -> None:
    """Rotates the first ``count`` heads of every row.

    Args:
        heads: [T, at least count * head_dim], changed in place.
        cos, sin: [T, R] as transformers' rotary modules give them, both halves equal; R <= head_dim is how much of
            a head is rotated.
        head_dim: width of a head.
        count: query and key heads together.
        inverse: apply the transpose, which is what the backward pass needs.
    """
    half = cos.shape[1] // 2
    if not use_triton(heads):
        view = heads[:, : count * head_dim].unflatten(1, (count, head_dim))
        first, second = view[..., :half].float(), view[..., half : 2 * half].float()
        c, s = cos[:, None, :half].float(), sin[:, None, :half].float() * (-1.0 if inverse else 1.0)
        view[..., : 2 * half] = torch.cat((first * c - second * s, second * c + first * s), dim=-1)
        return
    _rotate_kernel[(heads.shape[0],)](
        heads,
        cos,
        sin,
        heads.stride(0),
        cos.stride(0),
        count,
        half,
        head_dim,
        INVERSE=inverse,
        COUNT=row_block(count),
        HALF=row_block(half),
        num_warps=4,
    )


@jit
def _rotate_kernel(  # type: ignore[no-untyped-def]
    heads,
    cos,
    sin,
    row_stride,
    angle_stride,
    count,
    half,
    head_dim,
    INVERSE: tl.constexpr,
    COUNT: tl.constexpr,
    HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head, element = tl.arange(0, COUNT), tl.arange(0, HALF)
    angle_mask = element < half
    c = tl.load(cos + row * angle_stride + element, mask=angle_mask, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + row * angle_stride + element, mask=angle_mask, other=0.0).to(tl.float32)[None, :]
    if INVERSE:
        s = -s
    mask = (head < count)[:, None] & angle_mask[None, :]
    target = heads + row * row_stride + head[:, None] * head_dim + element[None, :]
    first = tl.load(target, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(target + half, mask=mask, other=0.0).to(tl.float32)
    tl.store(target, first * c - second * s, mask=mask)
    tl.store(target + half, second * c + first * s, mask=mask)
