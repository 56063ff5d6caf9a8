"""RMSNorm with a frozen weight, the residual addition before it and the FP8 form after it, in one pass each way.

Rounding follows transformers: Llama's norm rounds the normalised value before multiplying with the weight, Gemma's
multiplies with 1 + weight in float32.
"""

from __future__ import annotations

import torch

from app.kernels.fp8 import Rows, empty_fp8, quantise_rows_reference
from app.kernels.triton_support import jit, row_block, row_warps, tl, use_triton


def rms_norm(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    unit_offset: bool,
    room: int | None = None,
    added: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Rows]:
    """The norm of ``hidden + added`` and that sum.

    Args:
        hidden: [T, D].
        weight: [D], frozen.
        eps: added to the mean square.
        unit_offset: the factor is 1 + weight (Gemma).
        room: columns behind the norm's FP8 form; None gives none.
        added: [T, D], or None.

    Returns:
        The sum [T, D] (``hidden`` itself without ``added``) and its norm.
    """
    width = hidden.shape[1]
    total = hidden if added is None else torch.empty_like(hidden)
    normed = torch.empty_like(hidden)
    quantised, scale = (None, None) if room is None else empty_fp8(hidden, room)
    if use_triton(hidden):
        _forward_kernel[(hidden.shape[0],)](
            hidden,
            added,
            weight,
            total,
            normed,
            quantised,
            scale,
            width,
            width + (room or 0),
            eps,
            ADD=added is not None,
            UNIT_OFFSET=unit_offset,
            QUANTISE=room is not None,
            BLOCK=row_block(width),
            num_warps=row_warps(width),
        )
    else:
        if added is not None:
            torch.add(hidden, added, out=total)
        normed.copy_(rms_norm_reference(total.float(), weight, eps, unit_offset=unit_offset, rounded=hidden.dtype))
        if quantised is not None and scale is not None:
            quantise_rows_reference(normed.float(), quantised, scale)
    return total, Rows(value=normed, fp8=quantised, scale=scale)


def rms_norm_reference(
    hidden: torch.Tensor, weight: torch.Tensor, eps: float, *, unit_offset: bool, rounded: torch.dtype = torch.float32
) -> torch.Tensor:
    """In plain PyTorch and float32; ``rounded`` is the type Llama's norm rounds to before the weight."""
    normed = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)
    return normed * (1.0 + weight.float()) if unit_offset else normed.to(rounded).float() * weight.float()


def rms_norm_backward(
    grad: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    unit_offset: bool,
    residual_grad: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient of the norm's input, plus the gradient that reaches it past the norm.

    Args:
        grad: of the norm's output [T, D].
        hidden: the norm's input [T, D].
        weight, eps, unit_offset: as in the forward pass.
        residual_grad: [T, D].
        out: where the result is written, [T, D]; made if it is None.
    """
    out = torch.empty_like(hidden) if out is None else out
    if not use_triton(hidden):
        x, factor = hidden.float(), (1.0 + weight.float()) if unit_offset else weight.float()
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        scaled, normed = grad.float() * factor, x * inverse
        inner = (scaled * normed).mean(-1, keepdim=True)
        return out.copy_(residual_grad.float() + inverse * (scaled - normed * inner))
    width = hidden.shape[1]
    _backward_kernel[(hidden.shape[0],)](
        grad,
        hidden,
        weight,
        residual_grad,
        out,
        width,
        eps,
        UNIT_OFFSET=unit_offset,
        BLOCK=row_block(width),
        num_warps=row_warps(width),
    )
    return out


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    hidden,
    added,
    weight,
    total,
    normed,
    quantised,
    scale,
    width,
    fp8_stride,
    eps,
    ADD: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    QUANTISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    offset = row * width + column
    x = tl.load(hidden + offset, mask=mask, other=0.0)
    if ADD:
        x = (x.to(tl.float32) + tl.load(added + offset, mask=mask, other=0.0).to(tl.float32)).to(x.dtype)
        tl.store(total + offset, x, mask=mask)
    dtype = x.dtype
    x = x.to(tl.float32)
    w = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    y = y * (1.0 + w) if UNIT_OFFSET else y.to(dtype).to(tl.float32) * w
    y = y.to(dtype)
    tl.store(normed + offset, y, mask=mask)
    if QUANTISE:
        y = y.to(tl.float32)
        row_scale = tl.maximum(tl.max(tl.abs(y), axis=0), 1e-30) / 28.0
        tl.store(scale + row, row_scale)
        tl.store(quantised + row * fp8_stride + column, (y / row_scale).to(quantised.dtype.element_ty), mask=mask)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    grad, hidden, weight, residual_grad, out, width, eps, UNIT_OFFSET: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    offset = row * width + column
    x = tl.load(hidden + offset, mask=mask, other=0.0).to(tl.float32)
    w = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + offset, mask=mask, other=0.0).to(tl.float32) * (1.0 + w if UNIT_OFFSET else w)
    inverse = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    normed = x * inverse
    inner = tl.sum(g * normed, axis=0) / width
    past = tl.load(residual_grad + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offset, past + inverse * (g - normed * inner), mask=mask)
