"""Fits a training step into a memory budget: where embeddings lie, and what each layer keeps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from app.errors import MachineError
from app.kernels.embedding import gather_rows
from app.model.accelerate import Acceleration
from app.model.activation_store import LayerPlan
from app.model.memory_plan import layer_sizes, plan_layers

if TYPE_CHECKING:
    from peft import PeftModel

RESERVE = 192 * 2**20
"""Bytes left over for cuBLAS' workspaces, kernels that load late, and what the allocator cannot reuse."""
HEAD_BYTES = 13 * 2**25
"""What a chunk of logits takes at its peak: the logits in 16 and 32 bits, their exponentials, and a mask."""


def offload_embeddings(model: "PeftModel") -> int:
    """Moves the input embeddings to pinned CPU memory; returns the bytes freed, 0 where the head shares them."""
    base: Any = model.get_base_model()
    embedding = base.get_input_embeddings()
    if type(embedding) is not nn.Embedding or base.get_output_embeddings().weight is embedding.weight:
        return 0
    table = embedding.weight.detach()
    pinned = torch.empty(table.shape, dtype=table.dtype, pin_memory=True).copy_(table)
    embedding.weight = nn.Parameter(pinned, requires_grad=False)
    embedding.forward = lambda ids: gather_rows(pinned, ids)
    return table.numel() * table.element_size()


def fit_to_budget(
    acceleration: Acceleration,
    parameters: Sequence[nn.Parameter],
    *,
    rows: int,
    length: int,
    budget: int,
    state_bytes: int,
    device: torch.device,
    seconds_per_operation: float | None = None,
) -> list[LayerPlan]:
    """Sets and returns the memory plan for micro-batches of ``rows`` x ``length`` tokens.

    Args:
        acceleration: the fast layers.
        parameters: the trained ones; their gradients are counted unless they exist.
        rows, length: of a micro-batch.
        budget: bytes of GPU memory as the driver counts them for the whole card.
        state_bytes: what the optimizer will still allocate.
        device: the GPU.
        seconds_per_operation: speed of the products, for how much can be offloaded in the time of a forward pass;
            None: nothing is offloaded but what must be.

    Raises:
        MachineError: not even the smallest plan fits.
    """
    tokens, layers = rows * length, acceleration.layers
    sizes = layer_sizes(layers[0], tokens, length)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    grads = sum(p.numel() * p.element_size() for p in parameters if p.grad is None)
    hidden = sizes.bytes["hidden"]
    head = max(0, HEAD_BYTES + 4 * hidden - sizes.transient)
    available = budget - (total - free) - grads - state_bytes - head - RESERVE
    offloadable = 0
    if seconds_per_operation is not None:
        layer = layers[0]
        weights = sum(x.rows * x.columns for x in (layer.qkv, layer.output, layer.gate_up, layer.down))
        forward_seconds = 2.0 * tokens * weights * len(layers) * seconds_per_operation
        offloadable = int(forward_seconds * copy_bandwidth(device))
    plans = plan_layers(sizes, len(layers), available=available, offloadable=offloadable)
    if plans is None:
        raise MachineError(
            f"a step of {rows} x {length} tokens does not fit in {budget / 2**20:,.0f} MiB: the activations have "
            f"{max(0, available) / 2**20:,.0f} MiB and one layer alone needs {sizes.transient / 2**20:,.0f}",
            where="model.memory_budget",
            remedy="use fewer or shorter rows, a smaller rank, or a larger budget",
        )
    acceleration.set_plans(plans)
    return plans


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second from the GPU to pinned CPU memory, measured with 64 MiB."""
    source = torch.empty(2**26, dtype=torch.uint8, device=device)
    target = torch.empty(2**26, dtype=torch.uint8, pin_memory=True)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(source, non_blocking=True)
    start.record()
    for _ in range(4):
        target.copy_(source, non_blocking=True)
    end.record()
    end.synchronize()
    return 4 * 2**26 / (start.elapsed_time(end) / 1e3)
