"""Attention of single tokens to their slots of the cache, split over the keys (flash-decoding, Dao et al. 2023).

Each row's length is read on the device, so that a CUDA graph serves all lengths. A row's keys go to the same programs
in the same order whatever else is in the batch: its result is always the same to the bit.
"""

from __future__ import annotations

import torch

from app.kernels.cache_layer import CacheLayer, dequantised
from app.kernels.triton_support import jit, row_block, tl, use_triton

SPLITS = 16
"""Programs that share the keys of one row and key head."""
_KEYS = 64
_QUERIES = 64


def decode_attention(
    queries: torch.Tensor,
    cache: CacheLayer,
    slots: torch.Tensor,
    positions: torch.Tensor,
    memory: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    window: int | None,
) -> None:
    """Every row attends to positions 0 … its own of its slot.

    Args:
        queries: rotated. # [R, heads, D]
        cache: one layer's keys and values, the rows' own included.
        slots, positions: of each row, int32. # [R]
        memory: float32 for at least R * heads * SPLITS * (D + 2) values.
        out: receives the result. # [R, heads * D]
        scale: of the scores.
        window: how many positions a row sees, its own included; None: all.
    """
    rows, heads, head_dim = queries.shape
    key_heads, places = cache.keys.shape[1:3]
    if not use_triton(queries):
        out.copy_(_reference(queries, cache, slots, positions, scale=scale, window=window).flatten(1))
        return
    count = rows * heads * SPLITS
    sums, most, mass = memory[: count * head_dim], memory[count * head_dim :][:count], memory[count * (head_dim + 1) :]
    _attend_kernel[(rows, key_heads, SPLITS)](
        queries,
        cache.keys,
        cache.values,
        cache.key_scales,
        cache.value_scales,
        slots,
        positions,
        sums,
        most,
        mass,
        key_heads,
        places,
        scale,
        window or 0,
        head_dim,
        GROUP=heads // key_heads,
        GROUP_BLOCK=max(16, row_block(heads // key_heads)),
        INT8=cache.key_scales is not None,
        SPLITS=SPLITS,
        KEYS=_KEYS,
        BLOCK=max(16, row_block(head_dim)),
        num_warps=4,
    )
    _combine_kernel[(rows, heads)](
        sums, most, mass, out, head_dim, SPLITS=SPLITS, BLOCK=row_block(head_dim), num_warps=4
    )


def chunk_attention(
    queries: torch.Tensor,
    cache: CacheLayer,
    slots: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    window: int | None,
) -> None:
    """Tokens of one slot at positions that do not fall attend to it, each to what stands before it.

    Args:
        queries: rotated. # [T, heads, D]
        cache: one layer's keys and values, theirs included.
        slots: theirs, int32; all the same. # [T]
        positions: of each token, int32. # [T]
        out: receives the result. # [T, heads * D]
        scale: of the scores.
        window: how many positions a token sees, its own included; None: all.
    """
    rows, heads, head_dim = queries.shape
    key_heads, places = cache.keys.shape[1:3]
    if not use_triton(queries):
        out.copy_(_reference(queries, cache, slots, positions, scale=scale, window=window).flatten(1))
        return
    _chunk_kernel[(-(-rows // _QUERIES), heads)](
        queries,
        cache.keys,
        cache.values,
        cache.key_scales,
        cache.value_scales,
        slots,
        positions,
        out,
        rows,
        queries.stride(0),
        key_heads,
        places,
        scale,
        window or 0,
        head_dim,
        GROUP=heads // key_heads,
        INT8=cache.key_scales is not None,
        QUERIES=_QUERIES,
        KEYS=_KEYS,
        BLOCK=max(16, row_block(head_dim)),
        num_warps=4 if head_dim <= 128 else 8,
    )


def _reference(
    queries: torch.Tensor,
    cache: CacheLayer,
    slots: torch.Tensor,
    positions: torch.Tensor,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """In plain PyTorch and float32. # [R, heads, D]"""
    results = []
    for query, slot, position in zip(queries.float(), slots.tolist(), positions.tolist(), strict=True):
        start = 0 if window is None else max(0, position + 1 - window)
        keys, values = (part[:, start:].float() for part in dequantised(cache, slot, position + 1))
        grouped = query.unflatten(0, (keys.shape[0], -1))  # [H, group, D]
        weights = torch.softmax(grouped @ keys.transpose(1, 2) * scale, dim=-1)
        results.append((weights @ values).flatten(0, 1))
    return torch.stack(results)


@jit
def _attend_kernel(  # type: ignore[no-untyped-def]
    queries,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    positions,
    sums,
    most,
    mass,
    key_heads,
    places,
    scale,
    window,
    head_dim,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    INT8: tl.constexpr,
    SPLITS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The query heads of one key head over every SPLITS-th block of keys."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot, position = tl.load(slots + row), tl.load(positions + row)
    start = 0
    if window > 0:
        start = tl.maximum(0, position + 1 - window)
    group, element = tl.arange(0, GROUP_BLOCK), tl.arange(0, BLOCK)
    inside = element < head_dim
    query_head = (row * key_heads + head) * GROUP + group
    there = group < GROUP
    query = tl.load(
        queries + query_head[:, None] * head_dim + element[None, :],
        mask=there[:, None] & inside[None, :],
        other=0.0,
    )
    first = (slot.to(tl.int64) * key_heads + head) * places
    acc = tl.zeros((GROUP_BLOCK, BLOCK), tl.float32)
    top = tl.full((GROUP_BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_BLOCK,), tl.float32)
    block = start // KEYS + split
    while block <= position // KEYS:
        at = block * KEYS + tl.arange(0, KEYS)
        seen = (at >= start) & (at <= position)
        memory = (first + at)[:, None] * head_dim + element[None, :]
        mask = seen[:, None] & inside[None, :]
        key = tl.load(keys + memory, mask=mask, other=0.0).to(query.dtype)
        score = tl.dot(query, tl.trans(key)) * scale
        if INT8:
            score *= tl.load(key_scales + first + at, mask=seen, other=0.0)[None, :]
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        # A block with nothing to see leaves -inf, and -inf - -inf is no number.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(score - shift[:, None])
        shrink = tl.exp(top - shift)
        total = total * shrink + tl.sum(weight, axis=1)
        if INT8:
            weight *= tl.load(value_scales + first + at, mask=seen, other=0.0)[None, :]
        value = tl.load(values + memory, mask=mask, other=0.0).to(query.dtype)
        acc = acc * shrink[:, None] + tl.dot(weight.to(query.dtype), value)
        top = higher
        block += SPLITS
    target = query_head * SPLITS + split
    tl.store(sums + target[:, None] * head_dim + element[None, :], acc, mask=there[:, None] & inside[None, :])
    tl.store(most + target, top, mask=there)
    tl.store(mass + target, total, mask=there)


@jit
def _combine_kernel(  # type: ignore[no-untyped-def]
    sums, most, mass, out, head_dim, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    row, head = tl.program_id(0), tl.program_id(1)
    index = row * tl.num_programs(1) + head
    split, element = tl.arange(0, SPLITS), tl.arange(0, BLOCK)
    inside = element < head_dim
    top = tl.load(most + index * SPLITS + split)
    weight = tl.exp(top - tl.max(top, axis=0))
    total = tl.sum(weight * tl.load(mass + index * SPLITS + split), axis=0)
    parts = tl.load(
        sums + (index * SPLITS + split)[:, None] * head_dim + element[None, :], mask=inside[None, :], other=0.0
    )
    result = tl.sum(parts * weight[:, None], axis=0) / total
    tl.store(out + index * head_dim + element, result, mask=inside)


@jit
def _chunk_kernel(  # type: ignore[no-untyped-def]
    queries,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    positions,
    out,
    rows,
    row_stride,
    key_heads,
    places,
    scale,
    window,
    head_dim,
    GROUP: tl.constexpr,
    INT8: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One query head of QUERIES tokens over the keys they see (FlashAttention-2, arXiv 2307.08691)."""
    head = tl.program_id(1)
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    inside_rows = row < rows
    slot = tl.load(slots)
    position = tl.load(positions + row, mask=inside_rows, other=0)
    element = tl.arange(0, BLOCK)
    inside = (element < head_dim)[None, :]
    query = tl.load(
        queries + row[:, None] * row_stride + head * head_dim + element[None, :],
        mask=inside_rows[:, None] & inside,
        other=0.0,
    )
    first = (slot.to(tl.int64) * key_heads + head // GROUP) * places
    last = tl.max(position, axis=0)
    block = 0
    if window > 0:
        lowest = tl.min(tl.where(inside_rows, position, last), axis=0)
        block = tl.maximum(0, lowest + 1 - window) // KEYS
    acc = tl.zeros((QUERIES, BLOCK), tl.float32)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    while block <= last // KEYS:
        at = block * KEYS + tl.arange(0, KEYS)
        there = at <= last
        memory = (first + at)[:, None] * head_dim + element[None, :]
        key = tl.load(keys + memory, mask=there[:, None] & inside, other=0.0).to(query.dtype)
        score = tl.dot(query, tl.trans(key)) * scale
        if INT8:
            score *= tl.load(key_scales + first + at, mask=there, other=0.0)[None, :]
        seen = at[None, :] <= position[:, None]
        if window > 0:
            seen &= at[None, :] > position[:, None] - window
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(score - shift[:, None])
        shrink = tl.exp(top - shift)
        total = total * shrink + tl.sum(weight, axis=1)
        if INT8:
            weight *= tl.load(value_scales + first + at, mask=there, other=0.0)[None, :]
        value = tl.load(values + memory, mask=there[:, None] & inside, other=0.0).to(query.dtype)
        acc = acc * shrink[:, None] + tl.dot(weight.to(query.dtype), value)
        top = higher
        block += 1
    target = out + row[:, None] * (tl.num_programs(1) * head_dim) + head * head_dim + element[None, :]
    tl.store(target, acc / total[:, None], mask=inside_rows[:, None] & inside)
