"""The gated activation of a transformer's MLP, silu(gate) * up or gelu(gate) * up, and its gradient.

One pass each way over the fused projection [gate | up]; both also give the FP8 form of what the next product takes.
Arithmetic is float32 and rounds once.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from app.kernels.fp8 import Rows, empty_fp8, quantise_rows_reference
from app.kernels.triton_support import jit, row_block, tl, use_triton

Activation = Literal["silu", "gelu_tanh"]


def glu(
    gate_up: torch.Tensor, activation: Activation, *, room: int | None = None, keep: bool = False
) -> tuple[Rows, Rows]:
    """activation(gate) * up: [T, 2F] -> [T, F].

    Args:
        gate_up: [T, 2F].
        activation: of the gate.
        room: columns behind the result's FP8 form; None gives none.
        keep: with ``room``, also give gate_up's FP8 form, half as large to keep for the backward pass.

    Returns:
        The result, and ``gate_up`` as it is to be kept: in FP8 its ``value`` is empty.
    """
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    quantised, scale = (None, None) if room is None else empty_fp8(out, room)
    keep &= room is not None
    kept = Rows(value=gate_up)
    if keep:
        fp8, kept_scale = empty_fp8(gate_up, 0)
        kept = Rows(value=gate_up.new_empty(0), fp8=fp8, scale=kept_scale)
    if use_triton(gate_up):
        _forward_kernel[(tokens,)](
            gate_up,
            out,
            quantised,
            scale,
            kept.fp8,
            kept.scale,
            width + (room or 0),
            WIDTH=width,
            SILU=activation == "silu",
            QUANTISE=room is not None,
            KEEP=keep,
            BLOCK=min(row_block(width), 4096),
            num_warps=8,
        )
    else:
        out.copy_(glu_reference(gate_up.float(), activation))
        if quantised is not None and scale is not None:
            quantise_rows_reference(out.float(), quantised, scale)
        if kept.fp8 is not None and kept.scale is not None:
            quantise_rows_reference(gate_up.float(), kept.fp8, kept.scale)
    return Rows(value=out, fp8=quantised, scale=scale), kept


def glu_reference(gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """In plain PyTorch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")) * up


def glu_backward(
    grad: torch.Tensor, gate_up: Rows, activation: Activation, *, room: int | None = None
) -> tuple[torch.Tensor, Rows]:
    """Recomputes the activation and gives the gradient of [gate | up].

    Args:
        grad: of the activation [T, F].
        gate_up: [T, 2F], as stored: in the model's type, or in FP8 with a scale per row and an empty ``value``.
        activation: as in the forward pass.
        room: columns behind the gradient's FP8 form; None gives none.

    Returns:
        The activation [T, F] and the gradient [T, 2F].
    """
    tokens, width = grad.shape
    stored = gate_up.value if gate_up.fp8 is None else gate_up.fp8
    out = torch.empty_like(grad)
    grad_out = torch.empty(tokens, 2 * width, dtype=grad.dtype, device=grad.device)
    quantised, scale = (None, None) if room is None else empty_fp8(grad_out, room)
    if use_triton(grad):
        _backward_kernel[(tokens,)](
            grad,
            stored,
            gate_up.scale,
            out,
            grad_out,
            quantised,
            scale,
            2 * width + (room or 0),
            WIDTH=width,
            SILU=activation == "silu",
            STORED_FP8=gate_up.fp8 is not None,
            QUANTISE=room is not None,
            BLOCK=min(row_block(width), 4096),
            num_warps=8,
        )
        return out, Rows(value=grad_out, fp8=quantised, scale=scale)
    values = stored.float() if gate_up.scale is None else stored.float() * gate_up.scale
    with torch.enable_grad():
        leaf = values.detach().requires_grad_()
        result = glu_reference(leaf, activation)
    (leaf_grad,) = torch.autograd.grad(result, leaf, grad.float())
    out.copy_(result.detach())
    grad_out.copy_(leaf_grad)
    if quantised is not None and scale is not None:
        quantise_rows_reference(leaf_grad, quantised, scale)
    return out, Rows(value=grad_out, fp8=quantised, scale=scale)


@jit
def _gate(x, SILU: tl.constexpr):  # type: ignore[no-untyped-def]
    """Activation and its derivative; 0.79788 is sqrt(2 / pi), gelu's tanh form (arXiv 1606.08415)."""
    if SILU:
        sigmoid = tl.sigmoid(x)
        value = x * sigmoid
        derivative = sigmoid * (1.0 + x * (1.0 - sigmoid))
    else:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        tanh = 2.0 * tl.sigmoid(2.0 * inner) - 1.0
        slope = 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * x * x)
        value = 0.5 * x * (1.0 + tanh)
        derivative = 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope
    return value, derivative


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    gate_up,
    out,
    quantised,
    scale,
    kept,
    kept_scale,
    fp8_stride,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    QUANTISE: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row a program, in blocks: a whole row of 14,336 would spill registers to memory that the driver reserves."""
    row = tl.program_id(0).to(tl.int64)
    gate_up += row * 2 * WIDTH
    out += row * WIDTH
    column = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    largest_wide = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        mask = start + column < WIDTH
        gate = tl.load(gate_up + start + column, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(gate_up + WIDTH + start + column, mask=mask, other=0.0).to(tl.float32)
        value, _ = _gate(gate, SILU)
        value = value * up
        tl.store(out + start + column, value, mask=mask)
        largest = tl.maximum(largest, tl.abs(value))
        largest_wide = tl.maximum(largest_wide, tl.maximum(tl.abs(gate), tl.abs(up)))
    if QUANTISE:
        tl.debug_barrier()
        row_scale = tl.maximum(tl.max(largest, axis=0), 1e-30) / 28.0
        tl.store(scale + row, row_scale)
        for start in range(0, WIDTH, BLOCK):
            _quantise_block(out, quantised + row * fp8_stride, row_scale, start + column, WIDTH)
    if KEEP:
        row_scale = tl.maximum(tl.max(largest_wide, axis=0), 1e-30) / 28.0
        tl.store(kept_scale + row, row_scale)
        for start in range(0, 2 * WIDTH, BLOCK):
            _quantise_block(gate_up, kept + row * 2 * WIDTH, row_scale, start + column, 2 * WIDTH)


@jit
def _quantise_block(source, target, scale, column, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    mask = column < WIDTH
    value = tl.load(source + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(target + column, (value / scale).to(target.dtype.element_ty), mask=mask)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    grad,
    gate_up,
    gate_up_scale,
    out,
    grad_out,
    quantised,
    scale,
    fp8_stride,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    STORED_FP8: tl.constexpr,
    QUANTISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    gate_up += row * 2 * WIDTH
    grad_out += row * 2 * WIDTH
    column = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        mask = start + column < WIDTH
        gate = tl.load(gate_up + start + column, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(gate_up + WIDTH + start + column, mask=mask, other=0.0).to(tl.float32)
        if STORED_FP8:
            stored_scale = tl.load(gate_up_scale + row)
            gate, up = gate * stored_scale, up * stored_scale
        value, derivative = _gate(gate, SILU)
        g = tl.load(grad + row * WIDTH + start + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + row * WIDTH + start + column, value * up, mask=mask)
        gate_grad, up_grad = g * up * derivative, g * value
        tl.store(grad_out + start + column, gate_grad, mask=mask)
        tl.store(grad_out + WIDTH + start + column, up_grad, mask=mask)
        largest = tl.maximum(largest, tl.maximum(tl.abs(gate_grad), tl.abs(up_grad)))
    if QUANTISE:
        tl.debug_barrier()
        row_scale = tl.maximum(tl.max(largest, axis=0), 1e-30) / 28.0
        tl.store(scale + row, row_scale)
        for start in range(0, 2 * WIDTH, BLOCK):
            _quantise_block(grad_out, quantised + row * fp8_stride, row_scale, start + column, 2 * WIDTH)
