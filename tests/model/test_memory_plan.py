"""The memory plan keeps what fits, and never plans more than there is."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.model.activation_store import LayerPlan, Name
from app.model.memory_plan import LayerSizes, describe_plans, plan_layers

MIB = 2**20
NAMES: tuple[Name, ...] = ("hidden", "attention", "middle", "gate_up")
SIZES = LayerSizes(
    bytes={"hidden": 16 * MIB, "attention": 40 * MIB, "middle": 16 * MIB, "gate_up": 56 * MIB},
    operations={"attention": 2e11, "middle": 7e10, "gate_up": 5e11},
)


def bytes_in(plans: list[LayerPlan], place: str) -> int:
    return sum(SIZES.bytes[name] for plan in plans for name in NAMES if getattr(plan, name) == place)


def most_at_once(plans: list[LayerPlan]) -> int:
    """What lies on the GPU, step by step as `ActivationStore` goes: a copy's source or target is there meanwhile."""
    kept, out = (
        [sum(SIZES.bytes[name] for name in NAMES if getattr(plan, name) == place) for plan in plans]
        for place in ("keep", "offload")
    )
    there, most = 0, 0
    for index in range(len(plans)):  # forward: two layers' copies are under way
        there += kept[index] + out[index] - (out[index - 2] if index > 1 else 0)
        most = max(most, there)
    there = sum(kept)
    for index in reversed(range(len(plans))):  # backward: this layer's results are back, the next one's are coming
        coming = out[index - 1] if index else 0
        most = max(most, there + out[index] + coming)
        there -= kept[index]
    return most


@given(available=st.integers(0, 6000), offloadable=st.integers(0, 4000), layers=st.integers(1, 40))
def test_plans_fit(available: int, offloadable: int, layers: int) -> None:
    plans = plan_layers(SIZES, layers, available=available * MIB, offloadable=offloadable * MIB)
    if plans is None:
        assert available < layers * 16 and available < 2 * 16
        return
    assert bytes_in(plans, "keep") <= available * MIB
    assert most_at_once(plans) <= available * MIB
    copied = bytes_in(plans, "offload")
    inputs = sum(SIZES.bytes["hidden"] for plan in plans if plan.hidden == "offload")
    assert copied <= offloadable * MIB or copied == inputs


def test_more_memory_never_recomputes_more() -> None:
    recomputed = [
        bytes_in(plan_layers(SIZES, 32, available=mib * MIB, offloadable=0) or [], "recompute")
        for mib in range(600, 5000, 50)
    ]
    assert recomputed[0] > 0 and recomputed[-1] == 0
    assert all(later <= earlier for earlier, later in pairwise(recomputed))


def test_the_most_useful_bytes_are_kept_first() -> None:
    plans = plan_layers(SIZES, 4, available=(4 * 16 + 2 * 56) * MIB, offloadable=0)
    assert plans is not None
    assert [plan.gate_up for plan in plans] == ["keep", "recompute", "keep", "recompute"]
    assert describe_plans(plans) == (
        "4 layers: inputs 4 kept; attention 4 recomputed; residual 4 recomputed; MLP 2 kept, 2 recomputed"
    )


def test_what_is_offloaded_leaves_at_an_even_pace() -> None:
    plans = plan_layers(SIZES, 32, available=600 * MIB, offloadable=1200 * MIB)
    assert plans is not None
    copied = [sum(SIZES.bytes[name] for name in NAMES if getattr(plan, name) == "offload") for plan in plans]
    assert max(copied) > 0
    for quarter in range(4):
        assert sum(copied[quarter * 8 : quarter * 8 + 8]) == pytest.approx(sum(copied) / 4, rel=0.35)


def test_too_little_is_refused() -> None:
    assert plan_layers(SIZES, 32, available=10 * MIB, offloadable=0) is None
