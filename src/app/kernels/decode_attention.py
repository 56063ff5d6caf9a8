"""Attention to the slots of the cache: of single tokens, split over the keys (flash-decoding, Dao et al. 2023), and of
a prompt's tokens.

Each row's length is read on the device, so that a CUDA graph serves all lengths. A row's keys go to the same programs
in the same order whatever else is in the batch: its result is always the same to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.kernels.cache_layer import CacheLayer, dequantised
from app.kernels.triton_support import jit, row_block, tl, use_triton

# Programs that share the keys of one row and key head.
_SPLITS = 16
_KEYS = 64
_QUERIES = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitMemory:
    """Where programs that share a row's keys leave their parts, until these are added up.

    Attributes:
        sums: of weighted values, float32. # [R, heads, splits, D]
        most, mass: the largest score, and the sum of weights relative to it, float32. # [R, heads, splits]
    """

    sums: torch.Tensor
    most: torch.Tensor
    mass: torch.Tensor

    @staticmethod
    def of(*, rows: int, heads: int, head_dim: int, device: torch.device) -> SplitMemory:
        """Memory for at most ``rows`` rows."""
        return SplitMemory(
            sums=torch.empty(rows, heads, _SPLITS, head_dim, device=device),
            most=torch.empty(rows, heads, _SPLITS, device=device),
            mass=torch.empty(rows, heads, _SPLITS, device=device),
        )


def cached_attention(
    queries: torch.Tensor,
    cache: CacheLayer,
    slots: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    memory: SplitMemory | None = None,
) -> None:
    """Every row attends to positions 0 … its own of its slot.

    Args:
        queries: rotated. # [R, heads, D]
        cache: one layer's keys and values, the rows' own included.
        slots: of each row, int32; without ``memory`` all the same. # [R]
        positions: of each row, int32; without ``memory`` they do not fall. # [R]
        out: receives the result. # [R, heads * D]
        scale: of the scores.
        window: how many positions a row sees, its own included; None: all.
        memory: for rows that are single tokens of any slots; None: they are a prompt's.
    """
    rows, heads, head_dim = queries.shape
    key_heads, places = cache.keys.shape[1:3]
    tensors = queries, cache.keys, cache.values, cache.key_scales, cache.value_scales, slots, positions
    if not use_triton(queries):
        out.copy_(_reference(queries, cache, slots, positions, scale=scale, window=window).flatten(1))
    elif memory is None:
        _chunk_kernel[(-(-rows // _QUERIES), heads)](
            *tensors,
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
    else:
        _attend_kernel[(rows, key_heads, _SPLITS)](
            *tensors,
            memory.sums,
            memory.most,
            memory.mass,
            key_heads,
            places,
            scale,
            window or 0,
            head_dim,
            GROUP=heads // key_heads,
            GROUP_BLOCK=max(16, row_block(heads // key_heads)),
            INT8=cache.key_scales is not None,
            SPLITS=_SPLITS,
            KEYS=_KEYS,
            BLOCK=max(16, row_block(head_dim)),
            num_warps=4,
        )
        _combine_kernel[(rows, heads)](
            memory.sums, memory.most, memory.mass, out, head_dim, SPLITS=_SPLITS, BLOCK=row_block(head_dim), num_warps=4
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
