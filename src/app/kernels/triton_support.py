"""Triton where it is installed; where it is not, every kernel's plain PyTorch reference runs instead.

With ``TRITON_INTERPRET=1`` set before the first import the kernels also run on CPU tensors, slowly: that is how their
logic is tested on machines without a GPU.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["INTERPRETED", "jit", "row_block", "row_warps", "tl", "triton", "use_triton"]

try:
    import triton
    import triton.language as tl
except ImportError:  # Windows, macOS, CPU builds
    triton = None
    tl = None

INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET") == "1"


def jit(kernel: Callable[..., None]) -> Any:
    """``triton.jit`` where there is Triton; without it the undecorated function, which nobody calls."""
    return triton.jit(kernel) if triton is not None else kernel


def use_triton(tensor: torch.Tensor) -> bool:
    """Whether the Triton kernels can run on this tensor."""
    return triton is not None and (tensor.is_cuda or INTERPRETED)


def row_block(width: int) -> int:
    """The power of two that holds a row of ``width`` elements."""
    return 1 << (width - 1).bit_length()


def row_warps(width: int) -> int:
    """Warps of a program that holds one row in registers: about 16 elements a thread, at least 1 warp, at most 16."""
    return max(1, min(16, row_block(width) // 512))
