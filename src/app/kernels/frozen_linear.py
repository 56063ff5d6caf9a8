"""Frozen NF4 linear layers that share an input, with their LoRA adapters: forward and backward by hand.

The frozen weight needs no gradient, so the backward pass reads the weight, the gradient and, for the adapters alone,
the input and its rank-r projection. Query, key and value (or gate and up) are decoded into one matrix and multiplied
at once; their adapters are stacked: A as rows, B as blocks of a block-diagonal matrix with the scaling folded in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.kernels.fp8 import LARGEST, Rows, append, dither, room_for, scaled_product
from app.kernels.lora_stack import LoraPair, stack_adapters
from app.kernels.nf4 import FP8, NF4Weight, dequantise, dequantise_fp8, dequantise_fp8_transposed


@dataclass(frozen=True, kw_only=True, eq=False)
class StackedLora:
    """The adapters of all members in the model's float type: A [R, K], B [N, R] block-diagonal and scaled."""

    a: torch.Tensor
    b: torch.Tensor


class FrozenLinear:
    """Members [N_i, K] that take the same input; the outputs stand side by side, N = sum of N_i.

    Args:
        weights: the members, in the order of their outputs.
        adapters: each member's adapter, or None.
        dtype: of activations and gradients.
        fp8: whether the products with the frozen weights run in FP8.

    Attributes:
        room: columns behind FP8 inputs and gradients for the adapters' part of the product (`app.kernels.fp8.append`).
    """

    def __init__(
        self, weights: Sequence[NF4Weight], adapters: Sequence[LoraPair | None], *, dtype: torch.dtype, fp8: bool
    ) -> None:
        self.weights, self.adapters, self.dtype, self.fp8 = tuple(weights), tuple(adapters), dtype, fp8
        self.rows = sum(weight.rows for weight in weights)
        self.columns = weights[0].columns
        self.rank = sum(adapter.a.shape[0] for adapter in adapters if adapter)
        self.room = room_for(self.rank)
        self.parameters = [p for adapter in adapters if adapter for p in (adapter.a, adapter.b)]
        if fp8:
            # A block's largest weight is exactly its scale, because NF4 has the codes -1 and 1.
            largest = torch.stack([weight.block_scales().abs().max() for weight in weights]).max()
            self.smallest_scale = largest / LARGEST
            widest = self.smallest_scale.expand(1, max(self.rows, self.columns)).contiguous()
            self.use_scale(widest, self.smallest_scale.reciprocal())

    def use_scale(self, scale: torch.Tensor, inverse: torch.Tensor) -> None:
        """Takes the FP8 weight's scale from here on out of these tensors, which may change between steps.

        Args:
            scale: float32, the same number for each row or column (the longer of the two): [1, max(N, K)].
            inverse: of it, float32 [].
        """
        self.inverse_scale = inverse
        self.row_scales, self.column_scales = scale[:, : self.rows], scale[:, : self.columns]

    def stack(self) -> StackedLora | None:
        """The adapters as they are now, for one forward or backward pass."""
        if not self.parameters:
            return None
        device = self.weights[0].packed.device
        a = torch.empty(self.rank, self.columns, dtype=self.dtype, device=device)
        b = torch.empty(self.rows, self.rank, dtype=self.dtype, device=device)
        stack_adapters(self.adapters, [weight.rows for weight in self.weights], a, b)
        return StackedLora(a=a, b=b)

    def decode(self, lora: StackedLora | None, *, fp8: bool) -> torch.Tensor:
        """The frozen weight [N, K] as the forward product takes it: in FP8 with B behind it, or in the model's type."""
        width, dtype = (self.columns + self.room, FP8) if fp8 else (self.columns, self.dtype)
        out = torch.empty(self.rows, width, dtype=dtype, device=self.weights[0].packed.device)
        row = 0
        for weight in self.weights:
            part = out[row : row + weight.rows, : self.columns]
            dequantise_fp8(weight, self.inverse_scale, part) if fp8 else dequantise(weight, part)
            row += weight.rows
        if fp8 and lora is not None:
            append(out, lora.b, self.row_scales, split=True)
        return out

    def decode_transposed(self, lora: StackedLora | None) -> torch.Tensor:
        """The frozen weight as the input gradient's product takes it: in FP8 its transpose [K, N] with A's behind it,
        or [N, K] in the model's type."""
        if not self.fp8:
            return self.decode(lora, fp8=False)
        out = torch.empty(self.columns, self.rows + self.room, dtype=FP8, device=self.weights[0].packed.device)
        if lora is not None:
            append(out, lora.a.t(), self.column_scales, split=True)
        row = 0
        for weight in self.weights:
            dequantise_fp8_transposed(weight, self.inverse_scale, out[:, row : row + weight.rows])
            row += weight.rows
        return out

    def forward(
        self, x: Rows, weight: torch.Tensor, lora: StackedLora | None, projected: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Outputs [T, N] and the input's projection by A, [T, R].

        Args:
            x: [T, K], with its FP8 form if ``weight`` is in FP8; in the room behind that the projection is written.
            weight: from `decode`.
            lora: from `stack`.
            projected: the projection, where an earlier forward pass left it.
        """
        if lora is not None and projected is None:
            projected = torch.mm(x.value, lora.a.t())
        if weight.dtype == FP8:
            return self._fp8_product(x, projected, weight, self.row_scales), projected
        low_rank = None if lora is None or projected is None else (projected, lora.b.t())
        return _product(x.value, weight.t(), low_rank), projected

    def backward(
        self, grad: Rows, weight: torch.Tensor, lora: StackedLora | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gradient of the input [T, K] and of its projection by A [T, R]; ``weight`` from `decode_transposed`."""
        projected_grad = None if lora is None else torch.mm(grad.value, lora.b)
        if self.fp8:
            return self._fp8_product(grad, projected_grad, weight, self.column_scales), projected_grad
        low_rank = None if lora is None or projected_grad is None else (projected_grad, lora.a)
        return _product(grad.value, weight, low_rank), projected_grad

    def _fp8_product(
        self,
        rows: Rows,
        projected: torch.Tensor | None,
        weight: torch.Tensor,
        scales: torch.Tensor,
    ) -> torch.Tensor:
        if projected is not None and rows.fp8 is not None and rows.scale is not None:
            append(rows.fp8, projected, rows.scale, split=False)
        return scaled_product(rows, weight, scales, self.dtype)

    def adapter_grads(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        projected: torch.Tensor | None,
        projected_grad: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Gradients of the stacked A [R, K] and B [N, R] in float32, from these rows; None without adapters."""
        if projected is None or projected_grad is None:
            return None
        return _product_float32(projected_grad.t(), x), _product_float32(grad.t(), projected)

    def split_grads(self, stacked: tuple[torch.Tensor, torch.Tensor] | None) -> list[torch.Tensor]:
        """Gradients in the order of ``parameters``, from those of the stacked adapters."""
        if stacked is None:
            return []
        grads: list[torch.Tensor] = []
        row = rank = 0
        for weight, adapter in zip(self.weights, self.adapters, strict=True):
            if adapter is not None:
                r = adapter.a.shape[0]
                grads.append(stacked[0][rank : rank + r].to(adapter.a.dtype))
                block = stacked[1][row : row + weight.rows, rank : rank + r]
                grads.append((block * adapter.scaling).to(adapter.b.dtype))
                rank += r
            row += weight.rows
        return grads


def _product(a: torch.Tensor, b: torch.Tensor, low_rank: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """a @ b plus the adapter's product. The large product is added to the small one and reads it while it computes; the
    other way round the result would be read and written once more, 45 of 610 ms at 4 x 2,048 tokens (H100, 2026-11).
    """
    return torch.mm(a, b) if low_rank is None else torch.mm(*low_rank).addmm_(a, b)


class WeightScales:
    """The FP8 scales of all frozen layers, in two tensors that a step moves at once (`app.kernels.fp8.dither`).

    Args:
        layers: whose products run in FP8.
    """

    def __init__(self, layers: Sequence[FrozenLinear]) -> None:
        self._smallest = torch.stack([layer.smallest_scale for layer in layers])  # [L]
        widest = max(max(layer.rows, layer.columns) for layer in layers)
        self._scales = self._smallest[:, None].repeat(1, widest)  # [L, widest]
        self._inverses = self._smallest.reciprocal()
        for layer, scale, inverse in zip(layers, self._scales, self._inverses, strict=True):
            layer.use_scale(scale[None], inverse)

    def move(self, step: int) -> None:
        """To where they stand in that optimizer step; a CUDA graph that was recorded before reads the new values."""
        scales = self._smallest * dither(step)
        torch.reciprocal(scales, out=self._inverses)
        self._scales.copy_(scales[:, None].expand_as(self._scales))


def _product_float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in float32: a gradient summed over thousands of tokens is not rounded to 8 bits before Adam sees it."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
