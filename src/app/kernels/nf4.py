"""NF4 weights with double-quantised block scales (QLoRA, arXiv 2305.14314) back to bfloat16 or FP8, in one pass.

bitsandbytes undoes double quantisation and NF4 in two kernels and an addition; one pass reads each packed byte once.
The bfloat16 result is bit-equal to ``bitsandbytes.functional.dequantize_4bit``: code times scale in float32, rounded
once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from app.kernels.triton_support import jit, tl, triton, use_triton

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
BLOCK = 64
"""Weights that share a scale (bitsandbytes' block size, the only one accepted here)."""
SUPERBLOCK = 256
"""Block scales that share a second-level scale."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NF4Weight:
    """A weight [N, K] in bitsandbytes' storage; the tensors are the ``Params4bit``'s own, not copies.

    Attributes:
        packed: uint8 [N * K / 2], two codes a byte, the earlier weight in the upper four bits.
        rows, columns: N and K; K is a multiple of 64.
        code: float32 [16], the NF4 values.
        absmax: block scales: float32 [N * K / 64], or uint8 with the three below.
        absmax_code: float32 [256], values of the scales' codes; None without double quantisation.
        absmax_scale: float32 [blocks / 256 rounded up], second-level scales.
        absmax_offset: float32 [], added to every scale.
    """

    packed: torch.Tensor
    rows: int
    columns: int
    code: torch.Tensor
    absmax: torch.Tensor
    absmax_code: torch.Tensor | None = None
    absmax_scale: torch.Tensor | None = None
    absmax_offset: torch.Tensor | None = None

    @staticmethod
    def of(weight: Any) -> NF4Weight | None:
        """The storage of a bitsandbytes ``Params4bit``; None where its layout is not the one handled here."""
        state = getattr(weight, "quant_state", None)
        if state is None or state.quant_type != "nf4" or state.blocksize != BLOCK or len(state.shape) != 2:
            return None
        rows, columns = state.shape
        if columns % BLOCK or (state.nested and state.state2.blocksize != SUPERBLOCK):
            return None
        nested = (
            {
                "absmax_code": state.state2.code,
                "absmax_scale": state.state2.absmax,
                "absmax_offset": state.offset.reshape(()),
            }
            if state.nested
            else {}
        )
        return NF4Weight(
            packed=weight.data.view(-1),
            rows=rows,
            columns=columns,
            code=state.code,
            absmax=state.absmax.view(-1),
            **nested,
        )

    def block_scales(self) -> torch.Tensor:
        """Block scales in float32 [N * K / 64]."""
        if self.absmax_code is None or self.absmax_scale is None or self.absmax_offset is None:
            return self.absmax
        second = self.absmax_scale.repeat_interleave(SUPERBLOCK)[: self.absmax.numel()]
        return self.absmax_code[self.absmax.int()] * second + self.absmax_offset


def dequantise(weight: NF4Weight, out: torch.Tensor) -> torch.Tensor:
    """Writes the weight to ``out`` [N, K] (any float type; may be columns of a wider matrix) and returns it."""
    return _decode(weight, None, out)


def dequantise_fp8(weight: NF4Weight, inverse_scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Writes weight * inverse_scale to ``out`` [N, K] in FP8, which may be columns of a wider matrix.

    Args:
        inverse_scale: float32 [].
    """
    return _decode(weight, inverse_scale, out)


def dequantise_fp8_transposed(weight: NF4Weight, inverse_scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The transpose of what `dequantise_fp8` writes, to ``out`` [K, N] in FP8, which may be columns of a wider matrix.

    FP8 products on tensor cores contract over the contiguous dimension of both operands; the input gradient contracts
    over N.
    """
    if not use_triton(out):
        return out.copy_((dequantise_reference(weight) * inverse_scale).clamp(-FP8_MAX, FP8_MAX).to(FP8).t())
    rows_per_program = 128
    grid = (weight.columns // BLOCK, triton.cdiv(weight.rows, rows_per_program))
    _decode_transposed_kernel[grid](
        weight.packed,
        weight.absmax,
        weight.absmax_code,
        weight.absmax_scale,
        weight.absmax_offset,
        weight.code,
        inverse_scale,
        out,
        weight.rows,
        weight.columns // BLOCK,
        out.stride(0),
        NESTED=weight.absmax_code is not None,
        ROWS=rows_per_program,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out


def dequantise_reference(weight: NF4Weight) -> torch.Tensor:
    """The weight in float32 [N, K], in plain PyTorch."""
    codes = torch.stack((weight.packed >> 4, weight.packed & 15), dim=-1).view(-1, BLOCK)
    values = weight.code[codes.int()] * weight.block_scales()[:, None]
    return values.view(weight.rows, weight.columns)


def _decode(weight: NF4Weight, inverse_scale: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    if not use_triton(out):
        values = dequantise_reference(weight)
        if inverse_scale is not None:
            values = (values * inverse_scale).clamp(-FP8_MAX, FP8_MAX)
        return out.copy_(values.to(out.dtype))
    blocks, blocks_per_program = weight.absmax.numel(), 64
    _decode_kernel[(triton.cdiv(blocks, blocks_per_program),)](
        weight.packed,
        weight.absmax,
        weight.absmax_code,
        weight.absmax_scale,
        weight.absmax_offset,
        weight.code,
        inverse_scale,
        out,
        blocks,
        weight.columns // BLOCK,
        out.stride(0),
        NESTED=weight.absmax_code is not None,
        SCALED=inverse_scale is not None,
        BLOCKS=blocks_per_program,
        num_warps=2,
        # A multiplication and addition contracted to one instruction would round once less than bitsandbytes does.
        enable_fp_fusion=False,
    )
    return out


@jit
def _block_scales(absmax, absmax_code, absmax_scale, absmax_offset, block, mask, NESTED: tl.constexpr):  # type: ignore[no-untyped-def]
    if NESTED:
        index = tl.load(absmax + block, mask=mask, other=0).to(tl.int32)
        scale = tl.load(absmax_scale + block // 256, mask=mask, other=0.0)
        scales = tl.load(absmax_code + index) * scale + tl.load(absmax_offset)
    else:
        scales = tl.load(absmax + block, mask=mask, other=0.0)
    return scales


@jit
def _decode_kernel(  # type: ignore[no-untyped-def]
    packed,
    absmax,
    absmax_code,
    absmax_scale,
    absmax_offset,
    code,
    inverse_scale,
    out,
    blocks,
    blocks_per_row,
    out_stride,
    NESTED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    mask = block < blocks
    scales = _block_scales(absmax, absmax_code, absmax_scale, absmax_offset, block, mask, NESTED)
    byte = tl.load(packed + block[:, None] * 32 + tl.arange(0, 32)[None, :], mask=mask[:, None], other=0).to(tl.int32)
    values = tl.interleave(tl.load(code + (byte >> 4)), tl.load(code + (byte & 15))) * scales[:, None]
    if SCALED:
        values = values * tl.load(inverse_scale)
    start = (block // blocks_per_row).to(tl.int64) * out_stride + block % blocks_per_row * 64
    target = out + start[:, None] + tl.arange(0, 64)[None, :]
    tl.store(target, values.to(out.dtype.element_ty), mask=mask[:, None])


@jit
def _decode_transposed_kernel(  # type: ignore[no-untyped-def]
    packed,
    absmax,
    absmax_code,
    absmax_scale,
    absmax_offset,
    code,
    inverse_scale,
    out,
    rows,
    blocks_per_row,
    out_stride,
    NESTED: tl.constexpr,
    ROWS: tl.constexpr,
):
    column_block = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    mask = row < rows
    block = row * blocks_per_row + column_block
    scales = _block_scales(absmax, absmax_code, absmax_scale, absmax_offset, block, mask, NESTED)
    byte = tl.load(packed + block[:, None] * 32 + tl.arange(0, 32)[None, :], mask=mask[:, None], other=0).to(tl.int32)
    values = tl.interleave(tl.load(code + (byte >> 4)), tl.load(code + (byte & 15))) * scales[:, None]
    values = values * tl.load(inverse_scale)
    column = column_block * 64 + tl.arange(0, 64)
    target = out + column[None, :] * out_stride + row[:, None]
    tl.store(target, values.to(out.dtype.element_ty), mask=mask[:, None])
