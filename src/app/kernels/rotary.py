"""Rotary position embedding (arXiv 2104.09864) of all query and key heads of a fused projection, and its gradient."""

from __future__ import annotations

import torch

from app.kernels.fp8 import Rows, quantise_rows_reference
from app.kernels.nf4 import FP8
from app.kernels.triton_support import jit, row_block, row_warps, tl, use_triton


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


def fused_gradient(
    of_q: torch.Tensor, of_k: torch.Tensor, of_v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, fp8: bool
) -> Rows:
    """The gradient of the fused projection [T, N] from those of rotated queries and keys, and of values.

    Put side by side, rotated back and brought to FP8 in one pass, where torch's concatenation and two more kernels read
    and wrote 600 MB a layer at 4 x 2,048 tokens for the 240 that it takes.

    Args:
        of_q, of_k, of_v: [T, heads, head_dim], the last dimension contiguous.
        cos, sin: [T, R], as in `rotate_`.
        fp8: also give the FP8 form.
    """
    tokens, head_dim = of_q.shape[0], of_q.shape[2]
    rotated = of_q.shape[1] + of_k.shape[1]
    width = (rotated + of_v.shape[1]) * head_dim
    if not use_triton(of_q):
        out = torch.cat([part.flatten(1) for part in (of_q, of_k, of_v)], dim=1)
        rotate_(out, cos, sin, head_dim=head_dim, count=rotated, inverse=True)
    else:
        out = torch.empty(tokens, width, dtype=of_q.dtype, device=of_q.device)
    quantised = torch.empty_like(out, dtype=FP8) if fp8 else None
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=out.device) if fp8 else None
    if use_triton(of_q):
        assert of_q.stride(2) == of_k.stride(2) == of_v.stride(2) == 1
        _fused_gradient_kernel[(tokens,)](
            of_q, of_k, of_v, of_q.stride(0), of_q.stride(1), of_k.stride(0), of_k.stride(1), of_v.stride(0),
            of_v.stride(1), of_q.shape[1], of_k.shape[1], of_v.shape[1], cos, sin, cos.stride(0), cos.shape[1] // 2,
            head_dim, out, quantised, scale,
            QUANTISE=fp8, HEADS=row_block(width // head_dim), DIM=row_block(head_dim), num_warps=row_warps(width),
        )  # fmt: skip
    elif quantised is not None and scale is not None:
        quantise_rows_reference(out.float(), quantised, scale)
    return Rows(value=out, fp8=quantised, scale=scale)


@jit
def _fused_gradient_kernel(  # type: ignore[no-untyped-def]
    of_q,
    of_k,
    of_v,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    queries,
    keys,
    values,
    cos,
    sin,
    angle_stride,
    half,
    head_dim,
    out,
    quantised,
    scale,
    QUANTISE: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
):
    """A row a program. An element's partner in the rotation is loaded a second time, from the cache."""
    row = tl.program_id(0).to(tl.int64)
    head, element = tl.arange(0, HEADS)[:, None], tl.arange(0, DIM)[None, :]
    inside = (head < queries + keys + values) & (element < head_dim)
    turned = (head < queries + keys) & (element < 2 * half)
    partner = tl.where(element < half, element + half, element - half)
    of_q, of_k, of_v = of_q + row * q_row, of_k + row * k_row, of_v + row * v_row
    in_q, in_k, in_v = head < queries, (head >= queries) & (head < queries + keys), head >= queries + keys
    q_place, k_place, v_place = head * q_head, (head - queries) * k_head, (head - queries - keys) * v_head
    x = tl.load(of_q + q_place + element, mask=inside & in_q, other=0.0).to(tl.float32)
    x += tl.load(of_k + k_place + element, mask=inside & in_k, other=0.0).to(tl.float32)
    x += tl.load(of_v + v_place + element, mask=inside & in_v, other=0.0).to(tl.float32)
    y = tl.load(of_q + q_place + partner, mask=turned & in_q, other=0.0).to(tl.float32)
    y += tl.load(of_k + k_place + partner, mask=turned & in_k, other=0.0).to(tl.float32)
    angle = row * angle_stride + element + 0 * head
    c = tl.load(cos + angle, mask=turned, other=1.0).to(tl.float32)
    s = tl.load(sin + angle, mask=turned, other=0.0).to(tl.float32)
    x = (x * c + tl.where(element < half, y, -y) * s).to(out.dtype.element_ty)
    place = row * (queries + keys + values) * head_dim + head * head_dim + element
    tl.store(out + place, x, mask=inside)
    if QUANTISE:
        x = x.to(tl.float32)
        row_scale = tl.maximum(tl.max(tl.max(tl.abs(x), axis=1), axis=0), 1e-30) / 448.0
        tl.store(scale + row, row_scale)
        tl.store(quantised + place, (x / row_scale).to(quantised.dtype.element_ty), mask=inside)
