"""Products of up to 16 rows with NF4 weights, for text generation: as fast as the packed weights can be read.

Several weights that take the same input (query, key, value; gate, up) are one product, and their LoRA adapters' A are
further rows of it. The sum over K is split, so that few rows still occupy the whole GPU; what comes out are partial
sums, which the next kernel (`app.kernels.decode_layer`) adds up while it reads them.

A row's result is the same to the bit whatever stands beside it in the batch: here every product runs on a tile of 16
rows, of which the missing ones are masked. A sampled text so depends on its own seed alone, and a drafted token is
checked by the very numbers that would have chosen it.

Where CUDA C++ can be compiled, `app.kernels.nf4_cuda` multiplies, without splitting the sum. Mistral-7B's products take
2.4 ms a step on an H100 that way and 3.1 with the Triton kernel here, for one row. Launching kernels before their
predecessors end made steps slower: waiting programs took the places of working ones (2026-11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.kernels.nf4 import NF4Weight, dequantise, dequantise_reference
from app.kernels.nf4_cuda import MEMBERS, can_compile, multiply_few
from app.kernels.nf4_lookup import NF4_VALUES, decode_nibbles
from app.kernels.triton_support import INTERPRETED, jit, row_block, tl, use_triton

ROWS = 16
"""Most rows of one product."""
# Outputs of one program, its warps, and the stages of its pipeline of loads.
_TILE, _WARPS, _STAGES = 128, 4, 4
# Programs a product is split into, about four for each of an H100's 132 multiprocessors. It must not depend on the
# batch: it decides the order of summation.
_PROGRAMS = 792
# A split has at least this many blocks of 64, or the pipeline hardly fills before it drains.
_SHORTEST_SPLIT = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class StackedWeights:
    """Frozen weights [N_i, K] that share an input, with room for their adapters.

    Attributes:
        weights: the members, in the order of their outputs.
        members: int64 [members, 6]: each one's first tile, first output, and the distances of its tensors from the
            first member's.
        a: the adapters' A one below the other, zeros where there is none. # [members * rank, K]
        b: their B side by side, transposed and scaled. # [rank, N]
        splits: parts of the sum over K, a power of two, as is the rank (the largest adapter's, rounded up).
        pairs: for the kernel in CUDA C++, the two weights of each packed byte, bfloat16; None: Triton's multiplies.
            # [256, 2]
    """

    weights: tuple[NF4Weight, ...]
    members: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    splits: int
    pairs: torch.Tensor | None = None

    @staticmethod
    def of(weights: Sequence[NF4Weight], *, rank: int, dtype: torch.dtype) -> StackedWeights:
        """Fused storage for the weights, with adapters of at most ``rank`` (0: none) that compute nothing yet.

        Raises:
            ValueError: the weights do not share input width and quantisation, hold other values than NF4's, or lie in
                memory in a way the kernel does not read.
        """
        first = weights[0]
        device = first.packed.device
        if any(w.columns != first.columns or (w.absmax_code is None) != (first.absmax_code is None) for w in weights):
            raise ValueError("weights of different input widths or quantisation cannot be fused")
        if not all(torch.equal(w.code.cpu(), torch.tensor(NF4_VALUES)) for w in weights):
            raise ValueError("the weights' code is not NF4's")
        table, tile, output = [], 0, 0
        for weight in weights:
            distances = [_distance(getattr(weight, name), getattr(first, name)) for name in _TENSORS]
            if device.type == "cuda" and (first.packed.data_ptr() % 16 or distances[0] % 16):
                raise ValueError("a weight's memory does not begin at a multiple of 16 bytes")
            table.append([tile, output, *distances])
            tile += -(-weight.rows // _TILE)
            output += weight.rows
        # `app.kernels.decode_layer` takes sums of 16 products at least.
        rank = max(16, row_block(rank)) if rank else 0
        blocks = first.columns // 64
        native = len(weights) <= MEMBERS and dtype == torch.bfloat16 and can_compile(device)
        most = max(1, min(round(_PROGRAMS / tile), blocks // _SHORTEST_SPLIT))
        return StackedWeights(
            weights=tuple(weights),
            members=torch.tensor(table, device=device),
            a=torch.zeros(len(weights) * rank, first.columns, dtype=dtype, device=device),
            b=torch.zeros(rank, output, dtype=dtype, device=device),
            splits=1 if native else max(p for p in (1, 2, 4, 8, 16, 32) if p <= most and blocks % p == 0),
            pairs=torch.cartesian_prod(first.code, first.code).bfloat16() if native else None,
        )

    @property
    def outputs(self) -> int:
        """N, of all members together."""
        return self.b.shape[1]

    @property
    def width(self) -> int:
        """Columns of the partial sums: outputs, then the input's projection by A."""
        return self.outputs + self.a.shape[0]

    @property
    def rank(self) -> int:
        return self.b.shape[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class PartialSums:
    """A product that is not added up yet.

    Attributes:
        values: float32, the sums over parts of K: N outputs of the frozen weights, then ``x A^T``.
            # [splits, R, N + members * rank]
        weights: whose product it is.
    """

    values: torch.Tensor
    weights: StackedWeights

    def total(self) -> torch.Tensor:
        """The product with frozen weights and adapters, float32, in plain PyTorch. # [R, N]"""
        summed = self.values.sum(0)
        outputs, rank = self.weights.outputs, self.weights.rank
        result, low, start = summed[:, :outputs].clone(), summed[:, outputs:], 0
        for index, weight in enumerate(self.weights.weights):
            part = slice(start, start + weight.rows)
            result[:, part] += low[:, index * rank : (index + 1) * rank] @ self.weights.b[:, part].float()
            start += weight.rows
        return result


def split_product(
    x: torch.Tensor,
    weights: StackedWeights,
    out: torch.Tensor,
    *,
    squares: torch.Tensor | None = None,
    eps: float = 0.0,
) -> PartialSums:
    """``x W^T`` of all members and ``x A^T``, as partial sums.

    Args:
        x: at most 16 rows, in the adapters' type. # [R, K]
        weights: the members.
        out: float32 memory for at least splits * R * width values.
        squares: parts of the sum of squares of RMSNorm's input, whose products with the norm's weight ``x`` holds:
            results are divided by the root of their mean. # [R, parts]
        eps: added to the mean square.
    """
    rows, columns = x.shape
    assert rows <= ROWS
    values = out[: weights.splits * rows * weights.width].view(weights.splits, rows, weights.width)
    if not use_triton(x):
        factor = 1.0 if squares is None else torch.rsqrt(squares.sum(1, keepdim=True) / columns + eps)
        values.zero_()
        frozen = torch.cat([dequantise_reference(weight) for weight in weights.weights])
        torch.mul(x.float() @ torch.cat((frozen, weights.a.float())).t(), factor, out=values[0])
        return PartialSums(values=values, weights=weights)
    if weights.pairs is not None:
        multiply_few(x, weights.weights, weights.pairs, weights.a, values[0], squares=squares, eps=eps)
        return PartialSums(values=values, weights=weights)
    first = weights.weights[0]
    tiles = sum(-(-weight.rows // _TILE) for weight in weights.weights)
    adapters = weights.a.shape[0]
    adapter_tile = max(32, min(_TILE, row_block(max(adapters, 1))))
    blocks = columns // 64 // weights.splits
    _product_kernel[(tiles + -(-adapters // adapter_tile), weights.splits)](
        x,
        squares,
        first.packed,
        first.absmax,
        first.absmax_code,
        first.absmax_scale,
        first.absmax_offset,
        first.code,
        weights.members,
        weights.a,
        values,
        rows,
        columns,
        weights.outputs,
        weights.width,
        tiles,
        0 if squares is None else squares.shape[1],
        eps,
        MEMBERS=len(weights.weights),
        BLOCKS=blocks,
        NESTED=first.absmax_code is not None,
        PARTS=0 if squares is None else row_block(squares.shape[1]),
        IN_REGISTERS=not INTERPRETED,
        TILE=_TILE,
        ADAPTER_TILE=adapter_tile,
        STAGES=_STAGES,
        num_warps=_WARPS,
    )
    return PartialSums(values=values, weights=weights)


def multiply(x: torch.Tensor, weights: StackedWeights) -> torch.Tensor:
    """The product with frozen weights and adapters for many rows: decodes the weights, then multiplies in ``x``'s type.

    Args:
        x: [T, K].
        weights: the members.

    Returns:
        the members' outputs side by side. # [T, N]
    """
    decoded = torch.empty(weights.outputs, x.shape[1], dtype=x.dtype, device=x.device)
    start = 0
    for weight in weights.weights:
        dequantise(weight, decoded[start : start + weight.rows])
        start += weight.rows
    out = torch.mm(x, decoded.t())
    if weights.rank == 0:
        return out
    start, low = 0, torch.mm(x, weights.a.t())  # [T, members * rank]
    for member, each in zip(weights.weights, low.split(weights.rank, 1), strict=True):
        part = slice(start, start + member.rows)
        out[:, part].addmm_(each, weights.b[:, part])
        start += member.rows
    return out


_TENSORS = ("packed", "absmax", "absmax_scale", "absmax_offset")


def _distance(tensor: torch.Tensor | None, first: torch.Tensor | None) -> int:
    """Elements from one tensor's memory to another's: a kernel reaches several tensors from one pointer."""
    if tensor is None or first is None:
        return 0
    distance, rest = divmod(tensor.data_ptr() - first.data_ptr(), tensor.element_size())
    assert rest == 0
    return distance


@jit
def _store(acc, squares, out, row, rows, column, stored, columns, width, parts, eps, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Writes a tile of partial sums, divided by the norm of RMSNorm's input. # [16, TILE]"""
    there = (row < rows)[:, None]
    if PARTS > 0:
        part = tl.arange(0, PARTS)
        each = tl.load(squares + row[:, None] * parts + part[None, :], mask=there & (part < parts)[None, :], other=0.0)
        acc *= tl.rsqrt(tl.sum(each, axis=1) / columns + eps)[:, None]
    target = out + (tl.program_id(1) * rows + row)[:, None] * width + column[None, :]
    tl.store(target, acc, mask=there & stored[None, :])


@jit
def _product_kernel(  # type: ignore[no-untyped-def]
    x,
    squares,
    packed,
    absmax,
    absmax_code,
    absmax_scale,
    absmax_offset,
    code,
    members,
    a,
    out,
    rows,
    columns,
    outputs,
    width,
    tiles,
    parts,
    eps,
    MEMBERS: tl.constexpr,
    BLOCKS: tl.constexpr,
    NESTED: tl.constexpr,
    PARTS: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    TILE: tl.constexpr,
    ADAPTER_TILE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One tile of outputs over one part of K: [16, K / splits] x [TILE, K / splits]^T."""
    tile, first = tl.program_id(0), tl.program_id(1) * BLOCKS
    row = tl.arange(0, 16)
    there = (row < rows)[:, None]
    x += row[:, None] * columns + first * 64 + tl.arange(0, 64)[None, :]
    if tile < tiles:
        # A single member needs no table: two loads less, one after the other, before the first weight is asked for.
        start, end, first_tile = 0, outputs, 0
        if MEMBERS > 1:
            member = 0
            for index in tl.static_range(1, MEMBERS):
                member += (tile >= tl.load(members + index * 6)).to(tl.int32)
            members += member * 6
            first_tile = tl.load(members).to(tl.int32)
            start = tl.load(members + 1).to(tl.int32)
            if member + 1 < MEMBERS:
                end = tl.load(members + 7).to(tl.int32)
            packed += tl.multiple_of(tl.load(members + 2), 16)
            absmax += tl.load(members + 3)
            if NESTED:
                absmax_scale += tl.load(members + 4)
                absmax_offset += tl.load(members + 5)
        output = (tile - first_tile) * TILE + tl.arange(0, TILE)
        # Tiles may hang over the end of a member: they read its last row again and store nothing there.
        inner = tl.minimum(output, end - start - 1)
        packed += first * 32
        byte_at = inner.to(tl.int64)[:, None] * (columns // 2) + tl.arange(0, 32)[None, :]
        scale_at = inner * (columns // 64) + first
        if NESTED:
            offset = tl.load(absmax_offset)
        acc = tl.zeros((16, TILE), tl.float32)
        for block in tl.range(0, BLOCKS, num_stages=STAGES):
            byte = tl.load(packed + byte_at + block * 32)
            # A block's scale multiplies its sum of 64 products instead of each weight.
            if NESTED:
                second = tl.load(absmax_scale + (scale_at + block) // 256)
                scale = tl.load(absmax_code + tl.load(absmax + scale_at + block).to(tl.int32)) * second + offset
            else:
                scale = tl.load(absmax + scale_at + block)
            even, odd = tl.split(tl.reshape(tl.load(x + block * 64, mask=there, other=0.0), (16, 32, 2)))
            upper, lower = decode_nibbles(byte, code, even.dtype, IN_REGISTERS)
            product = tl.dot(even, tl.trans(upper))
            product = tl.dot(odd, tl.trans(lower), product)
            acc += product * scale[None, :]
        column = start + output
        _store(acc, squares, out, row, rows, column, column < end, columns, width, parts, eps, PARTS)
    else:
        place = outputs + (tile - tiles) * ADAPTER_TILE + tl.arange(0, ADAPTER_TILE)
        stored = place < width
        down = a + (place - outputs)[:, None] * columns + first * 64 + tl.arange(0, 64)[None, :]
        low = tl.zeros((16, ADAPTER_TILE), tl.float32)
        for block in tl.range(0, BLOCKS, num_stages=3):
            part = tl.load(down + block * 64, mask=stored[:, None], other=0.0)
            low = tl.dot(tl.load(x + block * 64, mask=there, other=0.0), tl.trans(part), low)
        _store(low, squares, out, row, rows, place, stored, columns, width, parts, eps, PARTS)
