"""Cross entropy through a frozen output head, without ever holding the logits of all positions.

The logits of one 2048-token row over Llama-3's 128,256 words are 1.05 GB in float32, and a plain loss holds them
several times. Here a chunk of rows at a time is multiplied, reduced to its loss and, in the same pass, to the
gradient of the hidden states; what lives on is one gradient of the hidden states' own size. The idea is that of
Liger's fused linear cross entropy (arXiv 2410.10989); this one needs no gradient of the frozen head, returns the
sum (so that the caller divides by the trained tokens of a whole accumulation window) and never waits for the GPU.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from app.kernels.softmax_loss import softmax_loss_
from app.kernels.streamed_cross_entropy import streamed_cross_entropy

CHUNK_ELEMENTS = 2**25
"""Logits held at a time: 64 MiB in 16 bits, 128 in float32."""


def reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same by the definition: sum over rows of -log softmax(hidden @ weight.T)[target], in float32."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_elements: int) -> Tensor:
        if weight.device != hidden.device:
            wanted = ctx.needs_input_grad[0]
            total, gradient = streamed_cross_entropy(hidden, weight, targets, gradient=wanted)
            ctx.save_for_backward(gradient)
            return total
        rows = max(1, chunk_elements // weight.shape[0])
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # [N, D]
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            logits = F.linear(hidden[part], weight)  # [n, V]
            total += softmax_loss_(logits, targets[part], gradient=gradient is not None).sum()
            if gradient is not None:
                torch.mm(logits, weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype), None, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_elements: int = CHUNK_ELEMENTS
) -> Tensor:
    """Summed cross entropy of ``hidden @ weight.T`` against ``targets``; differentiable in ``hidden`` only.

    Args:
        hidden: [N, D], the hidden states at the positions whose next token is trained.
        weight: [V, D], the frozen output head; in pinned CPU memory it is streamed.
        targets: [N] int64, the tokens that follow; a negative one is not counted (a CUDA graph has a fixed N).
        chunk_elements: how many logits are held at a time.

    Returns:
        A float32 scalar, in nats; 0 for N = 0.
    """
    assert not weight.requires_grad, "the head is frozen in QLoRA; its gradient is not computed here"
    return cast(Tensor, _LinearCrossEntropy.apply(hidden, weight, targets, chunk_elements))  # type: ignore[no-untyped-call]
