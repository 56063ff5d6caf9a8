"""Triton where it is installed; where it is not, every kernel's plain PyTorch reference runs instead.

With ``TRITON_INTERPRET=1`` set before the first import the kernels also run on CPU tensors, slowly: that is how their
logic is tested on machines without a GPU.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["INTERPRETED", "follow", "jit", "row_block", "row_warps", "starts_early", "tl", "triton", "use_triton"]

try:
    import triton
    import triton.language as tl
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
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


def starts_early(tensor: torch.Tensor) -> bool:
    """Whether kernels of a chain may be launched before the one before has ended (`follow`): Hopper and later."""
    return tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= (9, 0)


@jit
def follow(EARLY):  # type: ignore[no-untyped-def]
    """Lets the next kernel be launched, then waits until the one before has ended; without EARLY the launch waits.

    What a kernel does before this call overlaps with its predecessors, so it may touch only what none of them writes.
    (Programmatic dependent launch, CUDA programming guide; the kernel must be launched with ``launch_pdl``.)
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
