"""Rotary position embedding (arXiv 2104.09864) of all query and key heads of a fused projection, and its gradient."""

from __future__ import annotations

import torch

from app.kernels.fp8 import Rows, empty_fp8, quantise_rows_reference
from app.kernels.triton_support import jit, row_block, tl, use_triton

GROUP = 16
"""Heads that a program holds at a time: 96 registers a thread at a width of 128, none spilled at 256 (Triton 3.6 for an
H100, by cuobjdump)."""


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
    of_q: torch.Tensor,
    of_k: torch.Tensor,
    of_v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    room: int | None = None,
) -> Rows:
    """The gradient of the fused projection [T, N] from those of rotated queries and keys, and of values.

    Put side by side, rotated back and brought to FP8 in one pass, where torch's concatenation and two more kernels read
    and wrote 600 MB a layer at 4 x 2,048 tokens for the 240 that it takes.

    Args:
        of_q, of_k, of_v: [T, heads, head_dim], the last dimension contiguous.
        cos, sin: [T, R], as in `rotate_`.
        room: columns behind its FP8 form; None gives none.
    """
    tokens, head_dim = of_q.shape[0], of_q.shape[2]
    rotated = of_q.shape[1] + of_k.shape[1]
    width = (rotated + of_v.shape[1]) * head_dim
    if not use_triton(of_q):
        out = torch.cat([part.flatten(1) for part in (of_q, of_k, of_v)], dim=1)
        rotate_(out, cos, sin, head_dim=head_dim, count=rotated, inverse=True)
    else:
        out = torch.empty(tokens, width, dtype=of_q.dtype, device=of_q.device)
    quantised, scale = (None, None) if room is None else empty_fp8(out, room)
    if use_triton(of_q):
        assert of_q.stride(2) == of_k.stride(2) == of_v.stride(2) == 1
        _fused_gradient_kernel[(tokens,)](
            of_q, of_k, of_v, of_q.stride(0), of_q.stride(1), of_k.stride(0), of_k.stride(1), of_v.stride(0),
            of_v.stride(1), of_q.shape[1], of_k.shape[1], cos, sin, cos.stride(0), cos.shape[1] // 2,
            head_dim, out, quantised, scale, width + (room or 0),
            QUANTISE=room is not None, HEADS=width // head_dim, GROUP=GROUP, DIM=row_block(head_dim), num_warps=4,
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
    cos,
    sin,
    angle_stride,
    half,
    head_dim,
    out,
    quantised,
    scale,
    fp8_stride,
    QUANTISE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
):
    """A row a program, some heads at a time. An element's partner in the rotation is loaded again, from the cache."""
    row = tl.program_id(0).to(tl.int64)
    of_q, of_k, of_v = of_q + row * q_row, of_k + row * k_row, of_v + row * v_row
    cos, sin = cos + row * angle_stride, sin + row * angle_stride
    out += row * HEADS * head_dim
    element = tl.arange(0, DIM)[None, :]
    partner = tl.where(element < half, element + half, element - half)
    largest = tl.zeros((GROUP, DIM), tl.float32)
    for start in range(0, HEADS, GROUP):
        head = start + tl.arange(0, GROUP)[:, None]
        inside = (head < HEADS) & (element < head_dim)
        turned = (head < queries + keys) & (element < 2 * half)
        in_q, in_k, in_v = head < queries, (head >= queries) & (head < queries + keys), head >= queries + keys
        q_place, k_place, v_place = head * q_head, (head - queries) * k_head, (head - queries - keys) * v_head
        x = tl.load(of_q + q_place + element, mask=inside & in_q, other=0.0).to(tl.float32)
        x += tl.load(of_k + k_place + element, mask=inside & in_k, other=0.0).to(tl.float32)
        x += tl.load(of_v + v_place + element, mask=inside & in_v, other=0.0).to(tl.float32)
        y = tl.load(of_q + q_place + partner, mask=turned & in_q, other=0.0).to(tl.float32)
        y += tl.load(of_k + k_place + partner, mask=turned & in_k, other=0.0).to(tl.float32)
        c = tl.load(cos + element + 0 * head, mask=turned, other=1.0).to(tl.float32)
        s = tl.load(sin + element + 0 * head, mask=turned, other=0.0).to(tl.float32)
        x = (x * c + tl.where(element < half, y, -y) * s).to(out.dtype.element_ty)
        tl.store(out + head * head_dim + element, x, mask=inside)
        largest = tl.maximum(largest, tl.abs(x.to(tl.float32)))
    if QUANTISE:
        tl.debug_barrier()
        row_scale = tl.maximum(tl.max(tl.max(largest, axis=1), axis=0), 1e-30) / 28.0
        tl.store(scale + row, row_scale)
        quantised += row * fp8_stride
        for start in range(0, HEADS, GROUP):
            head = start + tl.arange(0, GROUP)[:, None]
            inside = (head < HEADS) & (element < head_dim)
            x = tl.load(out + head * head_dim + element, mask=inside, other=0.0).to(tl.float32)
            tl.store(quantised + head * head_dim + element, (x / row_scale).to(quantised.dtype.element_ty), mask=inside)
