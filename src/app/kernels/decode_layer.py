"""What stands between the products of a decoder layer while text is written: each kernel finishes the one before it.

A product's parts (`app.kernels.nf4_gemv.PartialSums`) and its adapter's B are summed by whoever reads the result:
the residual stream, the gated activation, the rotary embedding on its way into the cache. All arithmetic is float32
and rounds once, to what the next product takes.

A program has a few columns of all 16 rows, so that B is read once: with a program for each row, gate and up alone took
30 us of a 16-row layer's 170 on an H100 (2026-11).
"""

from __future__ import annotations

import torch

from app.kernels.cache_layer import CacheLayer, store
from app.kernels.glu import Activation, _gate, glu_reference
from app.kernels.nf4_gemv import ROWS, PartialSums
from app.kernels.triton_support import jit, row_block, tl, triton, use_triton

# Columns of one program: few enough for a width of 4,096 to occupy a GPU's multiprocessors.
_COLUMNS = 32


def square_parts(width: int) -> int:
    """Columns of `add_residual`'s ``squares`` for a model of this width."""
    return -(-width // _COLUMNS)


def add_residual(
    hidden: torch.Tensor, partial: PartialSums | None, factor: torch.Tensor, x: torch.Tensor, squares: torch.Tensor
) -> None:
    """Adds a product to the residual stream, and prepares RMSNorm for the product that follows.

    The norm's division is left to that product, which knows the sum of squares by then.

    Args:
        hidden: the residual stream, float32, changed in place. # [R, D]
        partial: what is added; None where it is all there already.
        factor: what RMSNorm multiplies with, float32. # [D]
        x: receives hidden * factor. # [R, D]
        squares: receives the sums of squares of 32 columns each, float32. # [R, parts]
    """
    rows, width = hidden.shape
    if not use_triton(hidden):
        if partial is not None:
            hidden += partial.total()
        x.copy_(hidden * factor)
        padded = torch.nn.functional.pad(hidden, (0, squares.shape[1] * _COLUMNS - width))
        squares.copy_(padded.unflatten(1, (-1, _COLUMNS)).square().sum(2))
        return
    _residual_kernel[(squares.shape[1],)](
        hidden,
        *_operands(partial),
        factor,
        x,
        squares,
        rows,
        width,
        **_sizes(partial),
        ROWS=ROWS,
        BLOCK=_COLUMNS,
        num_warps=4,
    )


def gated(partial: PartialSums, activation: Activation, out: torch.Tensor) -> None:
    """activation(gate) * up of a product [gate | up] into ``out`` [R, F]."""
    rows, width = out.shape
    if not use_triton(out):
        out.copy_(glu_reference(partial.total(), activation))
        return
    _gated_kernel[(triton.cdiv(width, _COLUMNS),)](
        *_operands(partial),
        out,
        rows,
        width,
        # Phi-3's gate and up are one weight with one adapter.
        UP_MEMBER=len(partial.weights.weights) - 1,
        **_sizes(partial),
        SILU=activation == "silu",
        ROWS=ROWS,
        BLOCK=_COLUMNS,
        num_warps=4,
    )


def rotate_into_cache(
    partial: PartialSums,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    queries: torch.Tensor,
    cache: CacheLayer,
) -> None:
    """Rotary embedding of a product [q | k | v]: queries into ``queries``, keys and values to their places.

    Args:
        partial: of query, key and value.
        cos, sin: tables as transformers' rotary modules give them, both halves equal. # [positions, rotated]
        slots, positions: of each row, int32. # [R]
        queries: receives the rotated queries. # [R, heads, D]
        cache: receives keys and values.
    """
    rows, heads, head_dim = queries.shape
    key_heads = cache.keys.shape[1]
    if not use_triton(queries):
        fused = partial.total().unflatten(1, (-1, head_dim))  # [R, heads + 2 key heads, D]
        rotated, half = heads + key_heads, cos.shape[1] // 2
        c, s = cos[positions.long(), None].float(), sin[positions.long(), None].float()
        part = fused[:, :rotated, : 2 * half]
        turned = torch.cat((-part[..., half:], part[..., :half]), dim=-1)
        fused[:, :rotated, : 2 * half] = part * c + turned * s
        queries.copy_(fused[:, :heads])
        store(cache, slots.long()[:, None], positions.long()[:, None], *fused[:, None, heads:].split(key_heads, 2))
        return
    separate = len(partial.weights.weights) > 1
    _rotate_kernel[(heads + 2 * key_heads,)](
        *_operands(partial),
        cos,
        sin,
        slots,
        positions,
        queries,
        cache.keys,
        cache.values,
        cache.key_scales,
        cache.value_scales,
        rows,
        heads,
        key_heads,
        cache.keys.shape[2],
        cos.shape[1] // 2,
        head_dim,
        SEPARATE=separate,
        INT8=cache.key_scales is not None,
        **_sizes(partial),
        ROWS=ROWS,
        BLOCK=row_block(head_dim),
        num_warps=8,
    )


def _operands(partial: PartialSums | None) -> tuple[torch.Tensor | int | None, ...]:
    """Arguments of `_finish`: values, B, width and outputs."""
    if partial is None:
        return None, None, 0, 0
    return partial.values, partial.weights.b, partial.weights.width, partial.weights.outputs


def _sizes(partial: PartialSums | None) -> dict[str, int]:
    """Compile-time arguments of `_finish`."""
    if partial is None:
        return {"SPLITS": 0, "RANK": 0}
    return {"SPLITS": partial.weights.splits, "RANK": partial.weights.rank}


@jit
def _finish(  # type: ignore[no-untyped-def]
    values,
    b,
    width,
    outputs,
    rows,
    row,
    column,
    mask,
    MEMBER: tl.constexpr,
    SPLITS: tl.constexpr,
    RANK: tl.constexpr,
):
    """Sum of a product's parts at ``column``, with its member's adapter. # [ROWS, BLOCK]"""
    there = (row < rows)[:, None]
    values += row[:, None] * width
    total = _add_up(values + column[None, :], there & mask[None, :], rows * width, SPLITS)
    if RANK > 0:
        rank = tl.arange(0, RANK)
        low = _add_up(values + (outputs + MEMBER * RANK + rank)[None, :], there, rows * width, SPLITS)
        factors = tl.load(b + rank[:, None] * outputs + column[None, :], mask=mask[None, :], other=0.0)
        total = tl.dot(low, factors.to(tl.float32), total, input_precision="ieee")
    return total


@jit
def _add_up(at, mask, distance, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    total = tl.load(at, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(at + split * distance, mask=mask, other=0.0)
    return total


@jit
def _residual_kernel(  # type: ignore[no-untyped-def]
    hidden,
    values,
    b,
    values_width,
    outputs,
    factor,
    x,
    squares,
    rows,
    width,
    SPLITS: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part = tl.program_id(0)
    row, column = tl.arange(0, ROWS), part * BLOCK + tl.arange(0, BLOCK)
    there, mask = row < rows, column < width
    both = there[:, None] & mask[None, :]
    at = row[:, None] * width + column[None, :]
    total = tl.load(hidden + at, mask=both, other=0.0)
    if SPLITS > 0:
        total += _finish(values, b, values_width, outputs, rows, row, column, mask, 0, SPLITS, RANK)
        tl.store(hidden + at, total, mask=both)
    tl.store(x + at, total * tl.load(factor + column, mask=mask, other=0.0)[None, :], mask=both)
    tl.store(squares + row * tl.num_programs(0) + part, tl.sum(total * total, axis=1), mask=there)


@jit
def _gated_kernel(  # type: ignore[no-untyped-def]
    values,
    b,
    values_width,
    outputs,
    out,
    rows,
    width,
    UP_MEMBER: tl.constexpr,
    SPLITS: tl.constexpr,
    RANK: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, column = tl.arange(0, ROWS), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there, mask = row < rows, column < width
    gate = _finish(values, b, values_width, outputs, rows, row, column, mask, 0, SPLITS, RANK)
    up = _finish(values, b, values_width, outputs, rows, row, width + column, mask, UP_MEMBER, SPLITS, RANK)
    value, _ = _gate(gate, SILU)
    tl.store(out + row[:, None] * width + column[None, :], value * up, mask=there[:, None] & mask[None, :])


@jit
def _rotate_kernel(  # type: ignore[no-untyped-def]
    values,
    b,
    values_width,
    outputs,
    cos,
    sin,
    slots,
    positions,
    queries,
    cache_keys,
    cache_values,
    key_scales,
    value_scales,
    rows,
    heads,
    key_heads,
    places,
    half,
    head_dim,
    SEPARATE: tl.constexpr,
    INT8: tl.constexpr,
    SPLITS: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program has one head of all rows: first those of q, then k, then v."""
    head = tl.program_id(0)
    row, element = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    there, mask = row < rows, element < head_dim
    both = there[:, None] & mask[None, :]
    slot, position = tl.load(slots + row, mask=there, other=0), tl.load(positions + row, mask=there, other=0)
    rotated = element < 2 * half
    # The other half's element, which is added with the sine.
    partner = tl.where(element < half, element + half, tl.where(rotated, element - half, element))
    angle = position[:, None] * (2 * half) + element[None, :]
    turns = there[:, None] & rotated[None, :]
    c = tl.load(cos + angle, mask=turns, other=1.0).to(tl.float32)
    s = tl.load(sin + angle, mask=turns, other=0.0).to(tl.float32) * tl.where(element < half, -1.0, 1.0)[None, :]
    column, other = head * head_dim + element, head * head_dim + partner
    place = (slot.to(tl.int64) * key_heads + head - heads) * places + position
    if head < heads:
        value = _finish(values, b, values_width, outputs, rows, row, column, mask, 0, SPLITS, RANK) * c
        value += _finish(values, b, values_width, outputs, rows, row, other, mask, 0, SPLITS, RANK) * s
        tl.store(queries + (row[:, None] * heads + head) * head_dim + element[None, :], value, mask=both)
    elif head < heads + key_heads:
        key: tl.constexpr = 1 if SEPARATE else 0
        value = _finish(values, b, values_width, outputs, rows, row, column, mask, key, SPLITS, RANK) * c
        value += _finish(values, b, values_width, outputs, rows, row, other, mask, key, SPLITS, RANK) * s
        _store(value, cache_keys, key_scales, place, there, head_dim, element, both, INT8)
    else:
        last: tl.constexpr = 2 if SEPARATE else 0
        value = _finish(values, b, values_width, outputs, rows, row, column, mask, last, SPLITS, RANK)
        _store(value, cache_values, value_scales, place - key_heads * places, there, head_dim, element, both, INT8)


@jit
def _store(value, block, scales, place, there, head_dim, element, mask, INT8: tl.constexpr):  # type: ignore[no-untyped-def]
    if INT8:
        scale = tl.max(tl.abs(value), axis=1) / 127
        tl.store(scales + place, scale, mask=there)
        scaled = value / tl.where(scale > 0, scale, 1.0)[:, None]
        # Rounds half away from zero where torch rounds to even: half a step either way.
        value = tl.floor(tl.abs(scaled) + 0.5) * tl.where(scaled < 0, -1.0, 1.0)
    tl.store(block + place[:, None] * head_dim + element[None, :], value.to(block.dtype.element_ty), mask=mask)
