"""What training holds on the card at its most, part by part; the parts that meet at that moment add up to the peak."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from app.families import Family
from app.plan.options import FitOptions
from app.plan.plain_step import FLOAT32, plain_step
from app.plan.shapes import Linear, ModelShape

NF4_BLOCK = 64
SCALE_BLOCK = 256
CONTEXT = 560 * 2**20
"""Outside torch's allocator: the driver's context, and the code of torch's, cuBLAS's and bitsandbytes' kernels."""
SLACK = 0.25
"""Memory that torch's allocator holds without a tensor in it, as a share of what comes and goes in a step."""


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
        host: bytes of pinned CPU memory.
    """

    parts: tuple[Part, ...]
    policy: str
    host: int = 0

    @property
    def peak(self) -> int:
        """Bytes as the driver counts them for the process."""
        return sum(part.bytes for part in self.parts if part.at_peak)


def plan_memory(shape: ModelShape, family: Family, options: FitOptions) -> MemoryPlan:
    """Memory of a run on a GPU."""
    from app.kernels.linear_cross_entropy import CHUNK_ELEMENTS

    model = options.model
    rows, length = options.micro_batch
    adapted = adapted_layers(shape, family, model["targets"])
    element = FLOAT32 if model["dtype"] == "float32" else 2
    step = plain_step(
        shape,
        rows=rows,
        length=length,
        adapted=[linear.name for linear in adapted],
        element=element,
        quantised=model["quantization"] == "nf4",
        checkpointing=model["gradient_checkpointing"],
        dropout=model["dropout"] > 0,
        eager=model["attention"] == "eager",
        padded=rows > 1 and not options.data["packing"],
        chunk_elements=CHUNK_ELEMENTS,
    )
    work, other = ("one block", step.block), ("output head and loss", step.head)
    if step.head > step.block:
        work, other = other, work
    kept = (
        "inputs of the blocks, which are recomputed"
        if model["gradient_checkpointing"]
        else "all of the blocks' results"
    )
    parts = [
        *resident_parts(shape, adapted, model),
        Part(name="activations kept", bytes=step.saved, note=f"{rows} x {length} tokens: {kept}"),
        Part(name="work in progress", bytes=work[1], note=work[0]),
        Part(name="logits", bytes=other[1], note=f"{other[0]}, a chunk at a time; at another moment", at_peak=False),
        Part(name="CUDA context", bytes=CONTEXT, note="driver, libraries and their workspaces"),
        Part(name="allocator slack", bytes=int(SLACK * (step.saved + work[1])), note="gaps that no tensor fits"),
    ]
    policy = "plain layers, " + (
        "each recomputed in the backward pass" if model["gradient_checkpointing"] else "nothing recomputed"
    )
    return MemoryPlan(parts=tuple(parts), policy=policy)


def resident_parts(shape: ModelShape, adapted: Sequence[Linear], model: Any) -> list[Part]:
    """What stays on the card for the whole run."""
    element = FLOAT32 if model["dtype"] == "float32" else 2
    weights, note = element * shape.block_weights, "of all blocks, 16 bits"
    if model["quantization"] == "nf4":
        weights = shape.layers * sum(nf4_bytes(linear, model["double_quant"]) for linear in shape.linears)
        note = f"NF4: {shape.block_weights / 1e9:.2f} billion in 4 bits, " + (
            "scales in 8" if model["double_quant"] else "scales in 32"
        )
    parameters = shape.layers * sum(model["rank"] * (linear.inputs + linear.outputs) for linear in adapted)
    if model["dora"]:
        parameters += shape.layers * sum(linear.outputs for linear in adapted)
    return [
        Part(name="weights", bytes=weights, note=note),
        Part(name="embeddings, head, norms", bytes=element * shape.plain_weights, note="never quantised"),
        Part(name="adapters", bytes=FLOAT32 * parameters, note=f"{parameters / 1e6:.1f} million, rank {model['rank']}"),
        Part(name="gradients", bytes=FLOAT32 * parameters, note="float32"),
        Part(name="optimizer", bytes=state_bytes(model["optimizer"], parameters), note=model["optimizer"]),
    ]


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


def adapted_layers(shape: ModelShape, family: Family, targets: Collection[str]) -> list[Linear]:
    """The linear layers of a block that get an adapter."""
    names = family.lora_targets if list(targets) == ["all"] else targets
    return [linear for linear in shape.linears if linear.name in names]
