"""What training holds on the card at its most, part by part; the parts that meet at that moment add up to the peak."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from app.errors import MachineError
from app.families import Family
from app.model.lora import resolve_targets
from app.plan.cards import find_card
from app.plan.gpu import Gpu
from app.plan.options import FitOptions
from app.plan.plain_step import FLOAT32, plain_step
from app.plan.shapes import Linear, ModelShape
from app.plan.speed import COPY_FROM_HOST, Precision, step_seconds, step_work

NF4_BLOCK = 64
SCALE_BLOCK = 256
CONTEXT = 767 * 2**20
"""Outside torch's allocator: the driver's context, and the code of torch's, cuBLAS's and bitsandbytes' kernels. As
on an H100 (torch 2.11, CUDA 13, 2026-11), at 1 x and at 4 x 2,048 tokens; smaller cards have smaller ones."""
WORKSPACES = 64 * 2**20
"""cuBLAS's, of 32 MiB in the forward and in the backward pass's thread (an H100's; 8 MiB each before Hopper)."""
SLACK = 0.18
"""Memory that torch's allocator holds without a tensor in it, as a share of what comes and goes in a step: 924 MiB of
5,185 in a plain step of 4 x 2,048 tokens (Mistral-7B, H100, 2026-11)."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of memory.

    Attributes:
        name: what holds it.
        bytes: how much.
        note: how it comes about.
        at_peak: whether it is there at the moment of the peak.
    """

    name: str
    bytes: int
    note: str = ""
    at_peak: bool = True


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Parts, and how the step will be run.

    Attributes:
        parts: in the order in which they come about.
        policy: which layers, and what they keep, copy out and recompute.
        precision: of the products with frozen weights; "plain" for transformers' own layers.
        recomputed: share of a forward pass's products that is done again.
        attention_again: share of the layers whose attention is.
        host: bytes of pinned CPU memory.
    """

    parts: tuple[Part, ...]
    policy: str
    precision: Precision
    recomputed: float
    attention_again: float
    host: int = 0

    @property
    def peak(self) -> int:
        """Bytes as the driver counts them for the process."""
        return sum(part.bytes for part in self.parts if part.at_peak)


def plan_memory(shape: ModelShape, family: Family, options: FitOptions, gpu: Gpu) -> MemoryPlan:
    """Memory of a run on ``gpu``.

    Raises:
        MachineError: not even the smallest plan of the fast layers fits.
        ConfigError: ``model.memory_budget`` is no size.
    """
    precision = precision_of(options.model, gpu)
    adapted = adapted_layers(shape, family, options.model["targets"])
    if precision == "plain":
        return _plain(shape, adapted, options)
    return _fast(shape, adapted, options, gpu, precision)


def precision_of(model: Mapping[str, Any], gpu: Gpu) -> Precision:
    """Which layers `app.model.accelerate` would choose: the fast ones serve NF4 weights and plain adapters alone."""
    covered = model["quantization"] == "nf4" and not model["dora"] and not model["dropout"]
    sixteen_bits = model["dtype"] != "float32" and (gpu.capability is None or gpu.capability >= (8, 0))
    if model["kernels"] == "none" or not (covered and sixteen_bits):
        return "plain"
    has_fp8 = gpu.card.fp8 is not None if gpu.card else (gpu.capability or (8, 9)) >= (8, 9)
    # Torch for Windows has no FP8 product of rows with a scale each: `app.model.accelerate.multiplies_rows`.
    has_fp8 &= model["dtype"] != "float16" and sys.platform != "win32"
    if model["kernels"] == "fp8" and not has_fp8:
        return "plain"
    return "fp8" if has_fp8 and model["kernels"] != "bf16" else "bf16"


def _plain(shape: ModelShape, adapted: Sequence[Linear], options: FitOptions) -> MemoryPlan:
    from app.kernels.linear_cross_entropy import CHUNK_ELEMENTS

    model, (rows, length) = options.model, options.micro_batch
    checkpointing = model["gradient_checkpointing"]
    step = plain_step(
        shape,
        rows=rows,
        length=length,
        adapted=[linear.name for linear in adapted],
        element=_element(model),
        quantised=model["quantization"] == "nf4",
        checkpointing=checkpointing,
        dropout=model["dropout"] > 0,
        eager=model["attention"] == "eager",
        padded=rows > 1 and not options.data["packing"],
        chunk_elements=CHUNK_ELEMENTS,
    )
    kept = "inputs of the blocks, which are recomputed" if checkpointing else "all results of the blocks"
    head = "output head and loss, a chunk at a time"
    work, other = ("of one block", step.block), (f"{head}; at another moment", step.head)
    if step.head > step.block:
        work, other = (head, step.head), ("of one block; at another moment", step.block)
    parts = (
        *resident_parts(shape, adapted, model),
        Part(name="activations kept", bytes=step.saved, note=f"{rows} x {length} tokens: {kept}"),
        Part(name="work in progress", bytes=work[1], note=work[0]),
        Part(name="logits" if work[0] != head else "a block", bytes=other[1], note=other[0], at_peak=False),
        Part(name="CUDA context", bytes=CONTEXT + WORKSPACES, note="driver, libraries, cuBLAS's workspaces"),
        Part(name="allocator slack", bytes=int(SLACK * (step.saved + work[1])), note="gaps that no tensor fits"),
    )
    policy = "each recomputed in the backward pass" if checkpointing else "nothing recomputed"
    recomputed = float(checkpointing)
    return MemoryPlan(
        parts=parts, policy=f"plain layers, {policy}", precision="plain", recomputed=recomputed,
        attention_again=recomputed,
    )  # fmt: skip


def _fast(
    shape: ModelShape, adapted: Sequence[Linear], options: FitOptions, gpu: Gpu, precision: Literal["bf16", "fp8"]
) -> MemoryPlan:
    """As `app.model.budget.fit_to_budget`: the embeddings lie in CPU memory, and the head where nothing else fits."""
    try:
        return _fast_with(shape, adapted, options, gpu, precision, head_on_host=shape.tied)
    except MachineError:
        if shape.tied:
            raise
        return _fast_with(shape, adapted, options, gpu, precision, head_on_host=True)


def _fast_with(
    shape: ModelShape,
    adapted: Sequence[Linear],
    options: FitOptions,
    gpu: Gpu,
    precision: Literal["bf16", "fp8"],
    *,
    head_on_host: bool,
) -> MemoryPlan:
    from app.model.budget import HEAD_BYTES
    from app.model.fast_step import DESKTOP, parse_budget
    from app.plan.fast_layers import fast_plan

    model, (rows, length) = options.model, options.micro_batch
    resident = resident_parts(shape, adapted, model)
    tables = 2 if head_on_host and not shape.tied else 1
    on_host = tables * 2 * shape.vocabulary * shape.width
    resident[1] = replace(
        resident[1],
        name="norms" if head_on_host else "head, norms",
        bytes=resident[1].bytes - on_host,
        note="embeddings and head: CPU memory" if head_on_host else "embeddings: CPU memory",
    )
    optimizer = resident.pop()
    card = gpu.card or find_card("rtx4060-laptop")
    forward = step_work(
        shape, rows=rows, length=length, trained=0, rank=model["rank"], precision=precision, recomputed=0.0,
        attention_again=0.0,
    )  # fmt: skip
    plan = fast_plan(
        shape,
        rows=rows,
        length=length,
        rank=model["rank"],
        adapted=[linear.name for linear in adapted],
        fp8=precision == "fp8",
        budget=parse_budget(model["memory_budget"]) or gpu.total - gpu.reserved - DESKTOP,
        used=gpu.used + CONTEXT + WORKSPACES + sum(part.bytes for part in resident),
        state_bytes=optimizer.bytes,
        # A step without recomputation is a forward pass and about twice as much again.
        forward_seconds=step_seconds(forward, card) / 3 / shape.layers,
        bandwidth=COPY_FROM_HOST * card.pcie,
    )
    parts = (
        *resident,
        optimizer,
        Part(name="activations kept", bytes=plan.kept, note=f"{rows} x {length} tokens"),
        Part(name="work in progress", bytes=plan.work, note="of one layer, or of the head with its logits"),
        Part(name="logits", bytes=HEAD_BYTES, note="a chunk at a time; at another moment", at_peak=False),
        Part(name="CUDA context", bytes=CONTEXT + WORKSPACES, note="driver, libraries, cuBLAS's workspaces"),
        Part(name="allocator slack", bytes=plan.reserve, note="CUDA graph and gaps"),
    )
    return MemoryPlan(
        parts=parts, policy=plan.description, precision=precision, recomputed=plan.recomputed,
        attention_again=plan.attention_again, host=plan.host + on_host,
    )  # fmt: skip


def resident_parts(shape: ModelShape, adapted: Sequence[Linear], model: Mapping[str, Any]) -> list[Part]:
    """What stays on the card for the whole run."""
    element = _element(model)
    weights, note = element * shape.block_weights, "of all blocks, 16 bits"
    if model["quantization"] == "nf4":
        weights = shape.layers * sum(nf4_bytes(linear, model["double_quant"]) for linear in shape.linears)
        note = f"NF4: {shape.block_weights / 1e9:.2f} billion in 4 bits, " + (
            "scales in 8" if model["double_quant"] else "scales in 32"
        )
    parameters = _parameters(shape, adapted, model)
    return [
        Part(name="weights", bytes=weights, note=note),
        Part(name="embeddings, head, norms", bytes=element * shape.plain_weights, note="never quantised"),
        Part(name="adapters", bytes=FLOAT32 * parameters, note=f"{parameters / 1e6:.1f} million, rank {model['rank']}"),
        Part(name="gradients", bytes=FLOAT32 * parameters, note="float32"),
        Part(name="optimizer", bytes=state_bytes(model["optimizer"], parameters), note=model["optimizer"]),
    ]


def trained_parameters(shape: ModelShape, family: Family, model: Mapping[str, Any]) -> int:
    """How many numbers the adapters have."""
    return _parameters(shape, adapted_layers(shape, family, model["targets"]), model)


def _parameters(shape: ModelShape, adapted: Sequence[Linear], model: Mapping[str, Any]) -> int:
    rank: int = model["rank"]
    each = rank * sum(linear.inputs + linear.outputs for linear in adapted)
    magnitudes = sum(linear.outputs for linear in adapted) if model["dora"] else 0
    return shape.layers * (each + magnitudes)


def state_bytes(optimizer: Any, parameters: int) -> int:
    """What the optimizer keeps."""
    from app.model.fast_step import STATE_BYTES

    return int(STATE_BYTES[optimizer] * parameters)


def nf4_bytes(linear: Linear, double_quant: bool) -> int:
    """A weight in bitsandbytes' NF4: 4 bits each, a scale for 64; those in 8 bits, with a scale for 256 of them."""
    blocks = -(-linear.weights // NF4_BLOCK)
    if not double_quant:
        return linear.weights // 2 + FLOAT32 * (blocks + 16)
    return linear.weights // 2 + blocks + FLOAT32 * (-(-blocks // SCALE_BLOCK) + SCALE_BLOCK + 1 + 16)


def adapted_layers(shape: ModelShape, family: Family, targets: Sequence[str]) -> list[Linear]:
    """The linear layers of a block that get an adapter.

    Raises:
        ConfigError: a target is no layer of the model.
    """
    # The head's adapter is not counted.
    names = resolve_targets({*(linear.name for linear in shape.linears), "lm_head"}, family, targets)
    return [linear for linear in shape.linears if linear.name in names]


def _element(model: Mapping[str, Any]) -> int:
    """Bytes of an activation: on a GPU ``auto`` is a 16-bit type."""
    return FLOAT32 if model["dtype"] == "float32" else 2
