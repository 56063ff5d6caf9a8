"""The adapters of linear layers that share an input, cast and put together in one launch.

Query, key and value take seven small kernels otherwise (a cast and a scaling for each, and zeros), and a step of a 7B
model puts its adapters together 300 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.kernels.triton_support import jit, row_block, tl, triton, use_triton

MEMBERS = 3
"""Most layers that share an input: query, key and value."""
ROWS, ELEMENTS = 64, 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraPair:
    """A member's adapter: A [r, K] and B [N, r] (trained parameters) and the scaling of their product."""

    a: torch.nn.Parameter
    b: torch.nn.Parameter
    scaling: float


def stack_adapters(adapters: Sequence[LoraPair | None], rows: Sequence[int], a: torch.Tensor, b: torch.Tensor) -> None:
    """Writes all members' A below one another, and their scaled B as the blocks of a block-diagonal matrix.

    Args:
        adapters: of each member, or None; at least one is there.
        rows: outputs of each member.
        a: [R, K], contiguous, of the type the products run in.
        b: [N, R], likewise; zero outside the blocks.
    """
    if not use_triton(a) or len(adapters) > MEMBERS:
        b.zero_()
        row = rank = 0
        for adapter, count in zip(adapters, rows, strict=True):
            if adapter is not None:
                r = adapter.a.shape[0]
                a[rank : rank + r].copy_(adapter.a.detach())
                torch.mul(adapter.b.detach(), adapter.scaling, out=b[row : row + count, rank : rank + r])
                rank += r
            row += count
        return
    missing = MEMBERS - len(adapters)
    some = next(adapter for adapter in adapters if adapter is not None)
    present = [*adapters, *[None] * missing]
    counts = [*rows, *[0] * missing]
    ranks = [0 if adapter is None else adapter.a.shape[0] for adapter in present]
    pairs = [some if adapter is None else adapter for adapter in present]
    programs = triton.cdiv(b.shape[0], ROWS)
    _stack_kernel[(programs + triton.cdiv(a.numel(), ELEMENTS),)](
        *(pair.a.detach() for pair in pairs),
        *(pair.b.detach() for pair in pairs),
        *(pair.scaling for pair in pairs),
        *ranks,
        *counts,
        a,
        b,
        a.shape[1],
        programs,
        RANK=row_block(a.shape[0]),
        ROWS=ROWS,
        ELEMENTS=ELEMENTS,
        num_warps=4,
    )


@jit
def _stack_kernel(  # type: ignore[no-untyped-def]
    a0,
    a1,
    a2,
    b0,
    b1,
    b2,
    scaling0,
    scaling1,
    scaling2,
    rank0,
    rank1,
    rank2,
    rows0,
    rows1,
    rows2,
    a_out,
    b_out,
    columns,
    b_programs,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """The first programs write rows of B, the others stretches of A, whose members lie behind one another."""
    program = tl.program_id(0)
    ranks = rank0 + rank1 + rank2
    if program < b_programs:
        row = program * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.arange(0, RANK)[None, :]
        value = _block(b0, row, column, rows0, rank0) * scaling0
        value += _block(b1, row - rows0, column - rank0, rows1, rank1) * scaling1
        value += _block(b2, row - rows0 - rows1, column - rank0 - rank1, rows2, rank2) * scaling2
        mask = (row < rows0 + rows1 + rows2) & (column < ranks)
        tl.store(b_out + row * ranks + column, value.to(b_out.dtype.element_ty), mask=mask)
    else:
        element = (program - b_programs) * ELEMENTS + tl.arange(0, ELEMENTS)
        end0, end1, end2 = rank0 * columns, (rank0 + rank1) * columns, ranks * columns
        part = tl.load(a0 + element, mask=element < end0, other=0.0)
        part += tl.load(a1 + element - end0, mask=(element >= end0) & (element < end1), other=0.0)
        part += tl.load(a2 + element - end1, mask=(element >= end1) & (element < end2), other=0.0)
        tl.store(a_out + element, part.to(a_out.dtype.element_ty), mask=element < end2)


@jit
def _block(b, row, column, rows, rank):  # type: ignore[no-untyped-def]
    """A member's B where the stacked matrix has it, zero elsewhere."""
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < rank)
    return tl.load(b + row * rank + column, mask=inside, other=0.0)
