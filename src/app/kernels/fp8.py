"""FP8 (e4m3) rows and products: each row has its own scale, the frozen weight one for the whole matrix.

e4m3 keeps a relative precision of 2.7 % (root mean square) over a range of 2^15, so a coarse scale of the weight costs
nothing; a token's activations and gradients differ from the next token's by far more, so each row gets its own.

A weight's scale is another one in every step (`dither`). With one scale for good a weight would be rounded to the same
wrong value in every step, and adapters would learn to make up for errors that are not there when the adapted model is
used: SmolLM2's held-out perplexity after 100 steps was 0.57 to 0.79 % above bf16's (three seeds, H100, 2026-11; the
forward pass alone made 0.72 of the first's 0.79). With the scale moved it is 0.06 to 0.11 % (scripts/bench/curves.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from app.kernels.nf4 import FP8, FP8_MAX
from app.kernels.triton_support import jit, row_block, row_warps, tl, use_triton

GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples modulo 1 fill the interval evenly, however many there are (the three-distance theorem)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Activations or gradients [T, K], with their FP8 form where the products are to be in FP8.

    Attributes:
        value: in the model's float type.
        fp8: [T, K], or None.
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


def quantise_rows(value: torch.Tensor) -> Rows:
    """[T, K] with its FP8 form."""
    fp8 = torch.empty_like(value, dtype=FP8)
    scale = torch.empty(value.shape[0], 1, dtype=torch.float32, device=value.device)
    if not use_triton(value):
        quantise_rows_reference(value.float(), fp8, scale)
    else:
        width = value.shape[1]
        _quantise_rows_kernel[(value.shape[0],)](
            value, fp8, scale, width, BLOCK=row_block(width), num_warps=row_warps(width)
        )
    return Rows(value=value, fp8=fp8, scale=scale)


def quantise_rows_reference(value: torch.Tensor, fp8: torch.Tensor, scale: torch.Tensor) -> None:
    """Writes the FP8 form of float32 rows, in plain PyTorch."""
    scale.copy_(value.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / FP8_MAX)
    fp8.copy_((value / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8))


def scaled_product(rows: Rows, weight: torch.Tensor, weight_scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """rows [T, K] times the transpose of an FP8 weight [N, K] with scales float32 [1, N]: [T, N]."""
    assert rows.fp8 is not None and rows.scale is not None
    if not rows.fp8.is_cuda:
        return ((rows.fp8.float() * rows.scale) @ (weight.float() * weight_scale.t()).t()).to(dtype)
    return torch._scaled_mm(
        rows.fp8, weight.t(), scale_a=rows.scale, scale_b=weight_scale, out_dtype=dtype, use_fast_accum=True
    )


@jit
def _quantise_rows_kernel(value, fp8, scale, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    x = tl.load(value + row * width + column, mask=mask, other=0.0).to(tl.float32)
    row_scale = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-30) / 448.0
    tl.store(scale + row, row_scale)
    tl.store(fp8 + row * width + column, (x / row_scale).to(fp8.dtype.element_ty), mask=mask)
