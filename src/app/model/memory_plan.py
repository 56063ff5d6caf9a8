"""Which intermediate results each layer keeps, offloads or recomputes, chosen by what fits in the budget."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.model.activation_store import LayerPlan, Name
from app.model.fast_layer import TILE, FastLayer


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """Bytes that each saved result of one layer takes, and what recomputing it costs, in floating-point operations.

    Attributes:
        bytes: result -> bytes.
        operations: result -> operations; the input cannot be recomputed.
        transient: bytes that one layer's backward pass needs at its peak, besides what was saved.
    """

    bytes: dict[Name, int]
    operations: dict[Name, float]
    transient: int


def layer_sizes(layer: FastLayer, tokens: int, longest: int) -> LayerSizes:
    """Sizes for ``tokens`` tokens in documents of at most ``longest``."""
    width, fused, inner = layer.qkv.columns, layer.qkv.rows, layer.gate_up.rows
    attended, element = layer.output.columns, layer.attention_norm.weight.element_size()
    weight_element = stored = 1 if layer.fp8 else element
    tile = min(tokens, TILE)
    # Attention runs at about half the speed of the products, hence the factor 2 (H100, flash attention 2).
    attention_operations = 2 * (2.0 * tokens * longest * attended)
    return LayerSizes(
        bytes={
            "hidden": tokens * width * element,
            "attention": tokens * ((fused + attended) * element + 4 * layer.heads.queries),
            "middle": tokens * width * element,
            "gate_up": tokens * (inner * stored + 4),
        },
        operations={
            "attention": 2.0 * tokens * width * fused + attention_operations,
            "middle": 2.0 * tokens * attended * width,
            "gate_up": 2.0 * tokens * width * inner,
        },
        transient=max(
            # MLP: gate_up, its gradient with FP8 form, the activation and its gradient, and the decoded weights.
            tile * inner * (3 * element + (2 if layer.fp8 else 0)) + 2 * weight_element * width * inner,
            # Attention: the fused projection and its gradient twice over, float32 sums of the query gradient.
            tokens * (3 * fused * element + attended * (2 * element + 4)),
        )
        + 6 * tokens * width * element,
    )


def plan_layers(
    sizes: LayerSizes, layers: int, *, available: int, offloadable: int = 0
) -> list[LayerPlan] | None:
    """The plan that recomputes least within ``available`` bytes of GPU memory; None where even the least is too much.

    Args:
        sizes: of one layer.
        layers: how many.
        available: bytes for activations.
        offloadable: bytes that can be copied to the CPU during one forward pass without making it wait.
    """
    left = available - sizes.transient
    plans = [LayerPlan()] * layers
    hidden = sizes.bytes["hidden"]
    if left < hidden * layers:
        # Three layers' inputs are on the GPU at a time: one in use and two on their way.
        plans = [replace(plan, hidden="offload") for plan in plans]
        left -= 3 * hidden
        offloadable -= hidden * layers
    else:
        left -= hidden * layers
    if left < 0:
        return None
    by_value = sorted(sizes.operations, key=lambda name: sizes.operations[name] / sizes.bytes[name], reverse=True)
    for name in by_value:
        for index in range(layers - 1, -1, -1):
            if sizes.bytes[name] <= left:
                plans[index] = replace(plans[index], **{name: "keep"})
                left -= sizes.bytes[name]
    # The first layers' results have the longest to travel there and back, so those go to the CPU.
    for name in by_value:
        for index in range(layers):
            if getattr(plans[index], name) == "recompute" and sizes.bytes[name] <= offloadable:
                plans[index] = replace(plans[index], **{name: "offload"})
                offloadable -= sizes.bytes[name]
    return plans


def describe_plans(plans: Sequence[LayerPlan]) -> str:
    """One line, such as "32 layers: attention 32 recomputed; MLP 20 kept, 12 recomputed"."""
    words = {"keep": "kept", "offload": "offloaded", "recompute": "recomputed"}
    titles: dict[Name, str] = {"hidden": "inputs", "attention": "attention", "middle": "residual", "gate_up": "MLP"}
    parts = []
    for name, title in titles.items():
        counts = Counter(getattr(plan, name) for plan in plans)
        parts.append(f"{title} " + ", ".join(f"{count} {words[place]}" for place, count in counts.items()))
    return f"{len(plans)} layers: " + "; ".join(parts)
