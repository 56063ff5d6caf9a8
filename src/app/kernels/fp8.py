"""FP8 (e4m3) rows and products: each row has its own scale, the frozen weight one for the whole matrix.

Adapters are part of the same product: x W^T + p B^T is [x | p] times [W | B] transposed, so p and B stand in FP8 behind
x and W (`append`). Added by a product of their own, they cost a pass over every result, 45 of 425 ms at 4 x 2,048
tokens (H100, 2026-11).

e4m3 keeps a relative precision of 2.7 % (root mean square) over a range of 2^15, so a coarse scale of the weight costs
nothing; a token's activations and gradients differ from the next token's by far more, so each row gets its own.

A weight's scale is another one in every step (`dither`). With one scale for good a weight would be rounded to the same
wrong value in every step, and adapters would learn to make up for errors that are not there when the adapted model is
used: SmolLM2's held-out perplexity after 100 steps was 0.57 to 0.79 % above bf16's (three seeds, H100, 2026-11; the
forward pass alone made 0.72 of the first's 0.79). With the scale moved it is 0.03 to 0.21 % (scripts/bench/curves.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from app.kernels.nf4 import FP8, FP8_MAX
from app.kernels.triton_support import jit, row_block, row_warps, tl, triton, use_triton

GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples modulo 1 fill the interval evenly, however many there are (the three-distance theorem)."""
ROOM = 128
"""Columns behind a matrix come in multiples of this: tensor cores read 128 bytes at a time."""
LARGEST = 28.0
"""What a row's or a weight's largest number becomes, a sixteenth of e4m3's 448: that far adapters may go beyond it. The
full precision of the rest ends at 1/1792 of the largest (of the NF4 codes, 0.08 of a block's, none is near)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Activations or gradients [T, K], with their FP8 form where the products are to be in FP8.

    Attributes:
        value: in the model's float type.
        fp8: [T, K] and room behind it for adapters, or None.
        scale: float32 [T, 1]: value is about fp8 * scale; None without ``fp8``.
    """

    value: torch.Tensor
    fp8: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    def __getitem__(self, rows: slice) -> Rows:
        if self.fp8 is None or self.scale is None:
            return Rows(value=self.value[rows])
        return Rows(value=self.value[rows], fp8=self.fp8[rows], scale=self.scale[rows])


def dither(step: int) -> float:
    """The factor in [1, 2) on the weights' scales in an optimizer step, known from the step's number alone.

    e4m3's values lie evenly in each power of two: over all factors an error in rounding has the mean 0, but for 0.1 %
    of the weight. A resumed run goes on with the factors that it would have had.
    """
    return float(2.0 ** (step * GOLDEN % 1.0))


def room_for(rank: int) -> int:
    """Columns that `append` needs behind a matrix for adapters of that rank."""
    return -(-2 * rank // ROOM) * ROOM


def empty_fp8(value: torch.Tensor, room: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An FP8 form of [T, K] that has yet to be written, [T, K + room], and its scales."""
    tokens, width = value.shape
    fp8 = torch.empty(tokens, width + room, dtype=FP8, device=value.device)
    return fp8, torch.empty(tokens, 1, dtype=torch.float32, device=value.device)


def quantise_rows(value: torch.Tensor, *, room: int = 0) -> Rows:
    """[T, K] with its FP8 form, ``room`` columns wider."""
    fp8, scale = empty_fp8(value, room)
    if not use_triton(value):
        quantise_rows_reference(value.float(), fp8, scale)
    else:
        width = value.shape[1]
        _quantise_rows_kernel[(value.shape[0],)](
            value, fp8, scale, width, fp8.stride(0), BLOCK=row_block(width), num_warps=row_warps(width)
        )
    return Rows(value=value, fp8=fp8, scale=scale)


def quantise_rows_reference(value: torch.Tensor, fp8: torch.Tensor, scale: torch.Tensor) -> None:
    """Writes the FP8 form of float32 rows, in plain PyTorch."""
    scale.copy_(value.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / LARGEST)
    fp8[:, : value.shape[1]].copy_((value / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8))


def append(fp8: torch.Tensor, factor: torch.Tensor, scale: torch.Tensor, *, split: bool) -> None:
    """Writes a factor of the adapters' product behind an FP8 matrix; the rest of the room becomes zero.

    The one on the weight's side is split in two pieces, which keep 8 binary digits: it stays for a whole step, where
    errors would add up. The other rounds for each token anew, as all that it stands behind does, and comes twice.

    Args:
        fp8: [n, K + room_for(R)].
        factor: [n, R].
        scale: float32, of the matrix: [n, 1] or [1, n].
        split: on the weight's side.
    """
    count, rank = factor.shape
    columns = fp8.shape[1] - room_for(rank)
    if not use_triton(fp8):
        value = factor.float() / scale.view(-1, 1)
        first = value.clamp(-FP8_MAX, FP8_MAX).to(FP8)
        second = (value - first.float()).clamp(-FP8_MAX, FP8_MAX).to(FP8) if split else first
        rest = torch.zeros(count, fp8.shape[1] - columns - 2 * rank, device=fp8.device).to(FP8)
        fp8[:, columns:] = torch.cat((first, second, rest), dim=1)
        return
    rows = 16
    _append_kernel[(triton.cdiv(count, rows),)](
        fp8, factor, scale, count, rank, columns, fp8.stride(0), factor.stride(0), factor.stride(1),
        SPLIT=split, ROWS=rows, COLUMNS=row_block(fp8.shape[1] - columns), num_warps=4,
    )  # fmt: skip


def scaled_product(rows: Rows, weight: torch.Tensor, weight_scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """rows [T, K] times the transpose of an FP8 weight [N, K] with scales float32 [1, N]: [T, N]."""
    assert rows.fp8 is not None and rows.scale is not None
    if not rows.fp8.is_cuda:
        return ((rows.fp8.float() * rows.scale) @ (weight.float() * weight_scale.t()).t()).to(dtype)
    return torch._scaled_mm(
        rows.fp8, weight.t(), scale_a=rows.scale, scale_b=weight_scale, out_dtype=dtype, use_fast_accum=True
    )


@jit
def _append_kernel(  # type: ignore[no-untyped-def]
    fp8,
    factor,
    scale,
    count,
    rank,
    columns,
    fp8_stride,
    row_stride,
    rank_stride,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    index = tl.where(column < rank, column, column - rank)
    mask = (row < count) & (column < 2 * rank)
    value = tl.load(factor + row * row_stride + index * rank_stride, mask=mask, other=0.0).to(tl.float32)
    value = value / tl.load(scale + row, mask=row < count, other=1.0)
    rounded = tl.minimum(tl.maximum(value, -448.0), 448.0).to(fp8.dtype.element_ty)
    if SPLIT:
        rest = tl.minimum(tl.maximum(value - rounded.to(tl.float32), -448.0), 448.0).to(fp8.dtype.element_ty)
        rounded = tl.where(column < rank, rounded, rest)
    tl.store(fp8 + row * fp8_stride + columns + column, rounded, mask=(row < count) & (columns + column < fp8_stride))


@jit
def _quantise_rows_kernel(value, fp8, scale, width, fp8_stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    x = tl.load(value + row * width + column, mask=mask, other=0.0).to(tl.float32)
    row_scale = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-30) / 28.0
    tl.store(scale + row, row_scale)
    tl.store(fp8 + row * fp8_stride + column, (x / row_scale).to(fp8.dtype.element_ty), mask=mask)
