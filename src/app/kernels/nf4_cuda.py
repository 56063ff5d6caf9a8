"""Products of up to 16 rows with NF4 weights by a kernel in CUDA C++, nf4_gemv.cu, which says how it works.

On an H100 it reads Mistral-7B's weights with 1.5 TB/s for one row (gate and up with 1.7), where the Triton kernel of
`app.kernels.nf4_gemv` reaches 1.2: packed weights go from memory to registers to tensor cores, past shared memory
(2026-11). Without looking anything up it would be 5 % faster: what limits it is waiting for memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import torch

from app.kernels.nf4 import NF4Weight
from app.kernels.nvrtc import HAS_NVRTC, Argument, compile_cuda, launch_cuda

log = logging.getLogger(__name__)

MEMBERS = 3
"""Most weights of one product."""
_FILE = "nf4_gemv.cu"
# 16 outputs for each of a block's eight warps, which share K; three blocks for each multiprocessor.
_TILES, _WARPS, _RESIDENT = 1, 8, 3


@cache
def can_compile(device: torch.device) -> bool:
    """Whether the kernel can be used there; where it should and cannot, a warning says why."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    try:
        if not HAS_NVRTC:
            raise RuntimeError("CUDA's Python bindings are not installed")
        compile_cuda(_FILE, torch.cuda.get_device_capability(device), **_macros(rows=1, columns=64, nested=True))
    except RuntimeError as fault:
        log.warning("text is written with slower kernels: %s", fault)
        return False
    return True


def multiply_few(
    x: torch.Tensor,
    weights: Sequence[NF4Weight],
    pairs: torch.Tensor,
    a: torch.Tensor,
    out: torch.Tensor,
    *,
    squares: torch.Tensor | None,
    eps: float,
) -> None:
    """``x W^T`` of all weights, side by side, then ``x A^T``.

    Args:
        x: at most 16 rows, bfloat16. # [R, K]
        weights: at most three, of one kind of quantisation. # [N_i, K]
        pairs: the two weights of each byte, bfloat16. # [256, 2]
        a: bfloat16. # [A, K]
        out: receives the result, float32. # [R, N + A]
        squares: parts of the sums of squares; results are divided by the root of their mean. None: they are not.
            # [R, parts]
        eps: added to the mean square.
    """
    rows, columns = x.shape
    first, adapters = weights[0], a.shape[0]
    members: list[Argument] = []
    for weight in weights:
        members += weight.packed, weight.absmax, weight.absmax_scale, weight.absmax_offset, weight.rows
    members += (None, None, None, None, 0) * (MEMBERS - len(weights))
    launch_cuda(
        _FILE,
        "product",
        blocks=sum(-(-count // (16 * _TILES)) for count in (adapters, *(weight.rows for weight in weights))),
        warps=_WARPS,
        macros=_macros(rows=rows, columns=columns, nested=first.absmax_code is not None),
        args=[
            *(x, squares, *members, first.absmax_code, pairs, a, out, rows, columns, adapters),
            *(0 if squares is None else squares.shape[1], eps),
        ],
    )


def _macros(*, rows: int, columns: int, nested: bool) -> dict[str, int]:
    """What the kernel is compiled for. The order of summation follows from K alone."""
    return {
        "TILES": _TILES,
        "WARPS": _WARPS,
        "UNROLL": 2 - columns // 64 % 2,
        "HALVES": 1 if rows <= 8 else 2,
        "NESTED": int(nested),
        "RESIDENT": _RESIDENT,
    }
