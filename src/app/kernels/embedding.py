"""Look-up of token embeddings that lie in pinned CPU memory, read by the GPU over the bus.

A 7B model's input embeddings take 250 MiB to 1 GiB and a step reads 2,048 rows of them: 17 MB. The kernel reads those
rows where they are, so no token id has to come back to the CPU and a CUDA graph can record it.
"""

from __future__ import annotations

import torch

from app.kernels.triton_support import jit, row_block, tl, use_triton


def gather_rows(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """``table[ids]`` on the device of ``ids``: [V, D] in pinned CPU memory, ids of any shape [...] -> [..., D]."""
    if not use_triton(ids):
        return table[ids.to(table.device)].to(ids.device)
    width = table.shape[1]
    out = torch.empty(*ids.shape, width, dtype=table.dtype, device=ids.device)
    _gather_kernel[(ids.numel(),)](table, ids.contiguous(), out, width, BLOCK=row_block(width), num_warps=4)
    return out


@jit
def _gather_kernel(table, ids, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    source = tl.load(ids + row).to(tl.int64) * width
    tl.store(out + row * width + column, tl.load(table + source + column, mask=mask, other=0.0), mask=mask)
