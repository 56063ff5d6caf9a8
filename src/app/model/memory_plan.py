"""Which intermediate results each layer keeps, offloads or recomputes, chosen by what fits in the budget."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from app.model.activation_store import LayerPlan, Name, Placement
from app.model.fast_layer import FastLayer

TRIES = 64
"""Amounts of saved results that are tried, from all that memory and bus might hold down to the inputs alone."""


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """Bytes that each saved result of one layer takes, and what recomputing it costs, in floating-point operations.

    Attributes:
        bytes: result -> bytes.
        operations: result -> operations; the input cannot be recomputed.
    """

    bytes: dict[Name, int]
    operations: dict[Name, float]


def layer_sizes(layer: FastLayer, tokens: int, longest: int) -> LayerSizes:
    """Sizes for ``tokens`` tokens in documents of at most ``longest``."""
    width, fused, inner = layer.qkv.columns, layer.qkv.rows, layer.gate_up.rows
    attended, element = layer.output.columns, layer.attention_norm.weight.element_size()
    # Attention does 200 to 400 TFLOP/s where products do 660 in bfloat16 and 1,300 in FP8 (H100, 2,048 tokens); of the
    # square of positions the causal half is computed.
    attention_operations = (4.5 if layer.fp8 else 2.3) * 2.0 * tokens * longest * attended
    return LayerSizes(
        bytes={
            "hidden": tokens * width * element,
            "attention": tokens * ((fused + attended) * element + 4 * layer.heads.queries),
            "middle": tokens * width * element,
            "gate_up": tokens * (inner * (1 if layer.fp8 else element) + 4),
        },
        operations={
            "attention": 2.0 * tokens * width * fused + attention_operations,
            "middle": 2.0 * tokens * attended * width,
            "gate_up": 2.0 * tokens * width * inner,
        },
    )


def plan_layers(sizes: LayerSizes, layers: int, *, available: int, offloadable: int) -> list[LayerPlan] | None:
    """The plan that recomputes least; None where the layers' inputs alone do not fit.

    Args:
        sizes: of one layer.
        layers: how many.
        available: bytes of GPU memory for saved results.
        offloadable: bytes that can be copied to the CPU during one forward pass without making it wait. The layers'
            inputs are copied beyond that if they must.
    """
    for share in range(TRIES, -1, -1):
        held = _held(sizes, layers, room=(available + offloadable) * share // TRIES)
        out = _offloaded(sizes, held, available)
        copied = sum(sizes.bytes[name] for names in out for name in names)
        inputs_alone = all(names == {"hidden"} for names in held)
        if _waiting(sizes, held, out) <= available and (copied <= offloadable or inputs_alone):
            return [_layer_plan(*names) for names in zip(held, out, strict=True)]
    return None


def _held(sizes: LayerSizes, layers: int, *, room: int) -> list[set[Name]]:
    """What each layer saves, on the GPU or not: the results that cost most for their size, in ``room`` bytes.

    The layers that save are spread evenly: what goes to the CPU then leaves at an even pace. With the last 20 of 32
    MLPs saved and offloaded, 4 x 2,048 tokens in FP8 took 463 ms, 49 of them without a kernel running (H100, 2026-11).
    """
    held: list[set[Name]] = [{"hidden"} for _ in range(layers)]
    room -= layers * sizes.bytes["hidden"]
    for name in sorted(sizes.operations, key=lambda name: sizes.operations[name] / sizes.bytes[name], reverse=True):
        count = max(0, min(layers, room // sizes.bytes[name]))
        for index in _spread(range(layers), count):
            held[index].add(name)
        room -= count * sizes.bytes[name]
    return held


def _offloaded(sizes: LayerSizes, held: Sequence[set[Name]], available: int) -> list[set[Name]]:
    """Which of these go to the CPU so that the rest fits.

    They are spread evenly, the small results first, so that no layer has more to copy than it takes to compute.
    """
    out: list[set[Name]] = [set() for _ in held]
    for name in sorted(sizes.bytes, key=lambda name: sizes.bytes[name]):
        if _waiting(sizes, held, out) <= available:
            break
        before, having = out, [index for index, names in enumerate(held) if name in names]
        # What stays has to fit even without what is on its way: fewer than this cannot do.
        kept = sum(sizes.bytes[each] for saved, moved in zip(held, out, strict=True) for each in saved - moved)
        least = min(-((available - kept) // sizes.bytes[name]), len(having))
        for count in range(max(1, least), len(having) + 1):
            chosen = set(_spread(having, count))
            out = [names | {name} if index in chosen else names for index, names in enumerate(before)]
            if _waiting(sizes, held, out) <= available:
                break
    return out


def waiting_bytes(kept: Sequence[int], copied: Sequence[int]) -> int:
    """Bytes on the GPU, at their most, of what waits for the backward pass.

    While that is at a layer, those above have given up what they kept, and on its way is what this one and the next
    offloaded; the forward pass leaves the same behind, the other way round. With all that is kept and the largest two
    neighbours added up, 4 x 2,048 tokens peaked 450 to 550 MiB below their budget (H100, 2026-11).

    Args:
        kept, copied: bytes that each layer keeps and offloads.
    """
    under_way = map(sum, pairwise([0, *copied]))
    return max(map(sum, zip(accumulate(kept), under_way, strict=True)))


def _waiting(sizes: LayerSizes, held: Sequence[set[Name]], out: Sequence[set[Name]]) -> int:
    copied = [sum(sizes.bytes[name] for name in names) for names in out]
    saved = [sum(sizes.bytes[name] for name in names) for names in held]
    return waiting_bytes([every - moved for every, moved in zip(saved, copied, strict=True)], copied)


def _spread(indices: Sequence[int], count: int) -> list[int]:
    """``count`` of the layers (all, if there are fewer), as evenly spaced over the whole stack as they allow."""
    left, chosen = list(indices), []
    for place in range(min(count, len(indices))):
        ideal = place * (indices[-1] + 1) / count
        chosen.append(min(left, key=lambda index: abs(index - ideal)))
        left.remove(chosen[-1])
    return chosen


def _layer_plan(held: set[Name], out: set[Name]) -> LayerPlan:
    def place(name: Name) -> Placement:
        return "offload" if name in out else "keep" if name in held else "recompute"

    hidden: Literal["keep", "offload"] = "offload" if "hidden" in out else "keep"
    return LayerPlan(hidden=hidden, attention=place("attention"), middle=place("middle"), gate_up=place("gate_up"))


def describe_plans(plans: Sequence[LayerPlan]) -> str:
    """One line, such as "32 layers: attention 32 recomputed; MLP 20 kept, 12 recomputed"."""
    words = {"keep": "kept", "offload": "offloaded", "recompute": "recomputed"}
    titles: dict[Name, str] = {"hidden": "inputs", "attention": "attention", "middle": "residual", "gate_up": "MLP"}
    parts = []
    for name, title in titles.items():
        counts = Counter(getattr(plan, name) for plan in plans)
        parts.append(f"{title} " + ", ".join(f"{count} {words[place]}" for place, count in counts.items()))
    return f"{len(plans)} layers: " + "; ".join(parts)
