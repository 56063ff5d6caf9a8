"""The fast layers' memory plan without a GPU: the code that chooses it in training, on layers that are shapes alone."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from app.kernels.attention import Heads
from app.kernels.frozen_linear import FrozenLinear
from app.kernels.lora_stack import LoraPair
from app.kernels.nf4 import BLOCK, SUPERBLOCK, NF4Weight
from app.model.activation_store import ActivationStore, LayerPlan, Name, Placement
from app.model.budget import Trial, choose_plans, reserve_bytes, work_bytes
from app.model.fast_layer import TILE, FastLayer, Norm
from app.model.memory_plan import LayerSizes, describe_plans, layer_sizes, waiting_bytes
from app.plan.shapes import Linear, ModelShape

NAMES: tuple[Name, ...] = ("hidden", "attention", "middle", "gate_up")


@dataclass(frozen=True, kw_only=True)
class FastPlan:
    """What the fast layers would do.

    Attributes:
        kept: bytes of results that wait on the GPU, those on their way to or from the CPU included.
        work: of a layer or the head at their most.
        reserve: for the CUDA graph and gaps.
        host: bytes of results that wait in pinned CPU memory.
        recomputed: share of a forward pass's products that is done again.
        attention_again: share of the layers whose attention is.
        description: one line.
    """

    kept: int
    work: int
    reserve: int
    host: int
    recomputed: float
    attention_again: float
    description: str


def fast_plan(
    shape: ModelShape,
    *,
    rows: int,
    length: int,
    rank: int,
    adapted: Collection[str],
    fp8: bool,
    budget: int,
    used: int,
    state_bytes: int,
    forward_seconds: float,
    bandwidth: float,
) -> FastPlan:
    """The plan for micro-batches of ``rows`` x ``length`` tokens.

    Args:
        shape: of the model.
        rows, length: of a micro-batch.
        rank: of the adapters.
        adapted: names of the layers that have one.
        fp8: whether products with frozen weights run in FP8.
        budget, used, state_bytes: see `app.model.budget.choose_plans`.
        forward_seconds: of one layer's forward pass.
        bandwidth: to pinned CPU memory.

    Raises:
        MachineError: not even the smallest plan fits.
    """
    layer = meta_layer(shape, rank=rank, adapted=adapted, fp8=fp8)
    sizes = layer_sizes(layer, rows * length, length)
    trial = Trial(transient=transient(shape, rows * length, fp8=fp8), forward_seconds=forward_seconds)
    plans = choose_plans(
        sizes, shape.layers, trial, rows=rows, length=length, budget=budget, used=used, state_bytes=state_bytes,
        bandwidth=bandwidth,
    )  # fmt: skip
    out = [_sum(sizes, plan, "offload") for plan in plans]
    again = sum(_products(shape, name) for plan in plans for name in NAMES if _at(plan, name) == "recompute")
    return FastPlan(
        kept=waiting_bytes([_sum(sizes, plan, "keep") for plan in plans], out),
        work=work_bytes(trial, sizes),
        reserve=reserve_bytes(work_bytes(trial, sizes)),
        host=sum(out),
        recomputed=again / shape.block_weights,
        attention_again=sum(plan.attention == "recompute" for plan in plans) / shape.layers,
        description=f"{'FP8' if fp8 else 'bf16'} kernels, {describe_plans(plans)}",
    )


def meta_layer(shape: ModelShape, *, rank: int, adapted: Collection[str], fp8: bool) -> FastLayer:
    """A fast layer whose tensors have shapes and no memory."""
    by_name = {linear.name: linear for linear in shape.linears}
    store = ActivationStore([LayerPlan()] * shape.layers, torch.device("meta"))
    norm = Norm(weight=_meta(shape.width), eps=1e-6, unit_offset=False)

    def linear(*names: str) -> FrozenLinear:
        members = [by_name[name] for name in names if name in by_name]
        adapters = [_adapter(member, rank) if member.name in adapted else None for member in members]
        return FrozenLinear([_weight(member) for member in members], adapters, dtype=torch.bfloat16, fp8=fp8)

    return FastLayer(
        index=0,
        attention_norm=norm,
        mlp_norm=norm,
        qkv=linear("q_proj", "k_proj", "v_proj", "qkv_proj"),
        output=linear("o_proj"),
        gate_up=linear("gate_proj", "up_proj", "gate_up_proj"),
        down=linear("down_proj"),
        heads=Heads(queries=shape.heads, keys=shape.key_heads, head_dim=shape.head_dim, window=shape.window),
        activation="silu",
        store=store,
    )


def transient(shape: ModelShape, tokens: int, *, fp8: bool) -> int:
    """What `app.model.budget.try_layer` measures: one layer's forward and backward pass, everything recomputed.

    The most is in the MLP's backward pass over one tile of tokens (`FastLayer._mlp_backward`). Beside the tile's own
    live the recomputed attention, the residual stream and its gradient; over several tiles the decoded weights too.
    Over very long rows it is in the attention's, which has no tiles, sums the gradient of queries in 32 bits, and has
    that of keys and values for each query head.
    """
    element, tile = 2, min(tokens, TILE)
    fused = shape.query_width + 2 * shape.key_width
    attending = tokens * (element * (shape.width + 2 * fused + 2 * shape.query_width) + 4 * shape.query_width)
    attending += tokens * (2 * element * shape.query_width if shape.key_heads < shape.heads else 0)
    eighth = 1 if fp8 else 0
    matrix = shape.inner * shape.width  # down; gate and up together are two
    decoded = 1 if fp8 else element
    beside = tokens * (element * (2 * shape.width + 2 * shape.query_width + 2 * shape.key_width) + 4 * shape.heads)
    beside += tile * (element + eighth) * shape.width
    inner = tile * shape.inner
    recomputing = 2 * decoded * matrix + 3 * element * inner + eighth * inner
    gate = 6 * element * inner + 2 * eighth * inner
    through = 2 * decoded * matrix + (2 * element + 2 * eighth) * inner + element * tile * shape.width
    if tokens > TILE:
        held = decoded * matrix * (1 + 2 * (2 if fp8 else 1))
        return max(attending, beside + held + max(3 * element * inner, gate, through - 2 * decoded * matrix))
    return max(attending, beside + max(recomputing, gate, through))


def _products(shape: ModelShape, name: Name) -> int:
    """Weights of a block whose products give a result; the down projection is never recomputed."""
    behind: dict[Name, tuple[str, ...]] = {
        "hidden": (),
        "attention": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
        "middle": ("o_proj",),
        "gate_up": ("gate_proj", "up_proj", "gate_up_proj"),
    }
    return sum(linear.weights for linear in shape.linears if linear.name in behind[name])


def _sum(sizes: LayerSizes, plan: LayerPlan, place: Placement) -> int:
    return sum(sizes.bytes[name] for name in NAMES if _at(plan, name) == place)


def _at(plan: LayerPlan, name: Name) -> Placement:
    placement: Placement = getattr(plan, name)
    return placement


def _meta(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*size, dtype=dtype, device="meta")


def _weight(linear: Linear) -> NF4Weight:
    blocks = linear.weights // BLOCK
    return NF4Weight(
        packed=_meta(linear.weights // 2, dtype=torch.uint8),
        rows=linear.outputs,
        columns=linear.inputs,
        code=_meta(16, dtype=torch.float32),
        absmax=_meta(blocks, dtype=torch.uint8),
        absmax_code=_meta(256, dtype=torch.float32),
        absmax_scale=_meta(-(-blocks // SUPERBLOCK), dtype=torch.float32),
        absmax_offset=torch.empty((), device="meta"),
    )


def _adapter(linear: Linear, rank: int) -> LoraPair:
    a, b = (nn.Parameter(_meta(*size, dtype=torch.float32)) for size in ((rank, linear.inputs), (linear.outputs, rank)))
    return LoraPair(a=a, b=b, scaling=2.0)
