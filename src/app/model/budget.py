"""Fits a training step into a memory budget: where embeddings lie, and what each layer keeps."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.errors import MachineError
from app.kernels.attention import Documents
from app.kernels.embedding import gather_rows
from app.model.accelerate import Acceleration
from app.model.activation_store import LayerPlan
from app.model.fast_layer import FastLayer, Positions
from app.model.memory_plan import LayerSizes, layer_sizes, plan_layers

RESERVE = 256 * 2**20
"""Bytes left over for the CUDA graph itself and for what the allocator cannot reuse."""
RESERVED_SHARE = 0.22
"""Of the work of one layer, left over as well: gaps are as large as what comes and goes. Steps took, beside what was
planned for them, 174 to 318 MiB where that work is 490 (1 x 2,048 tokens), 387 where it is 780 (Gemma's wide MLP), 317
and 365 where it is 980 (4 x 2,048; H100, 2026-11)."""
MOST_RESERVED = 512 * 2**20
"""They took some 500 at 16,384 tokens, the most that was measured; a larger share made that plan impossible."""
HEAD_BYTES = 13 * 2**25
"""What a chunk of logits takes at its peak: the logits in 16 and 32 bits, their exponentials, and a mask."""
log = logging.getLogger(__name__)
BUS_SHARE = 0.8
"""Part of the measured copy bandwidth that offloading counts on: copies beside computing ran at 0.87 of it, and with
0.9 planned the forward pass took 10 ms longer than its kernels (1 x and 4 x 2,048 tokens, H100, 2026-11)."""


def offload_embeddings(base: Any) -> int:
    """Moves the input embeddings to pinned CPU memory; returns the bytes freed.

    A head that shares them (Gemma) goes with them, and its loss is computed from there
    (`app.kernels.streamed_cross_entropy`), exact: what is traded is 1.5 GB over the bus in a step.
    """
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    table: Tensor = embedding.weight.detach()
    scale = getattr(embedding, "embed_scale", None)  # Gemma multiplies what it looks up
    if not isinstance(embedding, nn.Embedding) or table.device.type == "cpu":
        return 0
    pinned = _pinned(table)

    def look_up(ids: Tensor) -> Tensor:
        rows = gather_rows(pinned, ids)
        return rows if scale is None else rows * scale.to(rows.dtype)

    shared = head.weight is embedding.weight
    embedding.weight = nn.Parameter(pinned, requires_grad=False)
    setattr(embedding, "forward", look_up)  # noqa: B010  # mypy forbids assigning methods
    if shared:
        _set_head(head, embedding.weight)
    return table.numel() * table.element_size()


def offload_head(base: Any) -> int:
    """Moves the output head to pinned CPU memory, from where its loss is streamed; returns the bytes freed."""
    head = base.get_output_embeddings()
    weight: Tensor = head.weight.detach()
    if weight.device.type == "cpu":
        return 0
    _set_head(head, nn.Parameter(_pinned(weight), requires_grad=False))
    return weight.numel() * weight.element_size()


def _set_head(head: Any, weight: nn.Parameter) -> None:
    head.weight = weight
    setattr(head, "forward", lambda hidden: functional.linear(hidden, weight.to(hidden.device)))  # noqa: B010


def _pinned(table: Tensor) -> Tensor:
    return torch.empty(table.shape, dtype=table.dtype, pin_memory=True).copy_(table)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One layer's forward and backward pass, measured.

    Attributes:
        transient: bytes at the peak, besides what was there before and what is saved between the passes.
        forward_seconds: of one layer's forward pass.
    """

    transient: int
    forward_seconds: float


def fit_to_budget(
    base: Any,
    acceleration: Acceleration,
    *,
    rows: int,
    length: int,
    budget: int,
    state_bytes: int,
    device: torch.device,
    offload: bool = True,
) -> list[LayerPlan]:
    """Sets and returns the memory plan for micro-batches of ``rows`` x ``length`` tokens, from a trial of one layer.

    What is in use already counts as it is: the model, and the gradients, which a `StepGraph` makes. Where no plan fits,
    the output head goes to CPU memory too.

    Args:
        base: the transformers model.
        acceleration: the fast layers.
        rows, length: of a micro-batch.
        budget: bytes of GPU memory as the driver counts them for the whole card.
        state_bytes: what the optimizer will still allocate.
        device: the GPU.
        offload: whether results may go to pinned CPU memory where the bus has time for them.

    Raises:
        MachineError: not even the smallest plan fits.
    """
    layers = acceleration.layers
    sizes = layer_sizes(layers[0], rows * length, length)
    trial = try_layer(layers[0], rows=rows, length=length, device=device)
    bandwidth = copy_bandwidth(device) if offload else 0.0
    while True:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        try:
            plans = choose_plans(
                sizes,
                len(layers),
                trial,
                rows=rows,
                length=length,
                budget=budget,
                used=total - free,
                state_bytes=state_bytes,
                bandwidth=bandwidth,
            )
            break
        except MachineError:
            if not (offload and offload_head(base)):
                raise
            log.info("the output head waits in CPU memory: without it no step of %d tokens fits", rows * length)
    acceleration.set_plans(plans)
    return plans


def choose_plans(
    sizes: LayerSizes,
    layers: int,
    trial: Trial,
    *,
    rows: int,
    length: int,
    budget: int,
    used: int,
    state_bytes: int,
    bandwidth: float,
) -> list[LayerPlan]:
    """The memory plan for a trial's figures; `app.plan` asks it for the same plan without a GPU.

    Args:
        sizes: of one layer's results.
        layers: how many.
        trial: of one layer, measured or predicted.
        rows, length: of a micro-batch.
        budget: bytes of GPU memory as the driver counts them for the whole card.
        used: of these, in use before the step.
        state_bytes: what the optimizer will still allocate.
        bandwidth: bytes per second to pinned CPU memory; 0 leaves everything on the GPU.

    Raises:
        MachineError: not even the smallest plan fits.
    """
    work = work_bytes(trial, sizes)
    available = budget - used - state_bytes - work - reserve_bytes(work)
    offloadable = int(BUS_SHARE * bandwidth * trial.forward_seconds * layers)
    plans = plan_layers(sizes, layers, available=available, offloadable=offloadable)
    if plans is None:
        raise MachineError(
            f"a step of {rows} x {length} tokens does not fit in {budget / 2**20:,.0f} MiB: model, optimizer and the "
            f"work of one layer leave {available / 2**20:,.0f} MiB for the layers' inputs",
            where="model.memory_budget",
            remedy="use fewer or shorter rows, a smaller rank, or a larger budget",
        )
    return plans


def work_bytes(trial: Trial, sizes: LayerSizes) -> int:
    """What a layer, or the output head with its logits, takes at its peak."""
    return max(trial.transient, HEAD_BYTES + 4 * sizes.bytes["hidden"])


def reserve_bytes(work: int) -> int:
    """What is left over for the graph itself and for what the allocator cannot reuse."""
    return min(RESERVE + int(RESERVED_SHARE * work), MOST_RESERVED)


def try_layer(layer: FastLayer, *, rows: int, length: int, device: torch.device) -> Trial:
    """Runs one layer forward and backward with everything recomputed; it also loads every kernel the step needs."""
    tokens, width = rows * length, layer.qkv.columns
    dtype = layer.attention_norm.weight.dtype
    hidden, grad = torch.randn(2, tokens, width, dtype=dtype, device=device).unbind()
    angles = torch.zeros(tokens, layer.heads.head_dim, dtype=dtype, device=device)
    starts = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
    positions = Positions(cos=angles, sin=angles, documents=Documents(starts=starts, longest=length, rows=rows))
    layer.store.plans = [LayerPlan()] * len(layer.store.plans)
    with torch.no_grad():
        for _ in range(2):  # the first run compiles
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            _, projected = layer.forward(hidden, positions, save=True)
            layer.backward(grad, positions, projected, to_input=True)
        transient = torch.cuda.max_memory_allocated(device) - before
        # Launched kernel by kernel, the pass takes as long as Python does; replayed, as long as the GPU does.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            layer.forward(hidden, positions, save=True)
        layer.store.begin()
    return Trial(transient=transient, forward_seconds=_seconds(graph.replay))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second from the GPU to pinned CPU memory, measured with 64 MiB."""
    source = torch.empty(2**26, dtype=torch.uint8, device=device)
    target = torch.empty(2**26, dtype=torch.uint8, pin_memory=True)
    return 2**26 / _seconds(lambda: target.copy_(source, non_blocking=True))


def _seconds(work: Callable[[], object], *, repeats: int = 4) -> float:
    """GPU time of one run, after one that is not counted."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats
