"""What stays on the card is what a real model and optimizer hold, to the byte; the fast layers keep to a budget."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import MachineError
from app.families import Family, all_families, get_family
from app.model.activation_store import ActivationStore, LayerPlan
from app.model.load import load_base
from app.model.lora import attach_lora
from app.model.memory_plan import layer_sizes
from app.plan.cards import find_card
from app.plan.fast_layers import meta_layer
from app.plan.gpu import Gpu, imagined
from app.plan.memory import adapted_layers, plan_memory, precision_of, resident_parts
from app.plan.options import FitOptions, read_options
from app.plan.shapes import read_shape, shape_of
from conftest import ROOT, TinyCheckpoint

MIB = 2**20
LAPTOP = imagined(find_card("rtx4060-laptop"))


def options(family: Family, **changes: Any) -> FitOptions:
    config = "quickstart" if family.name == "smollm2" else family.name
    return read_options([ROOT / "configs" / f"{config}.yaml"], changes)


@pytest.mark.parametrize("double_quant", [True, False])
def test_resident_bytes_are_those_of_a_real_model(family: Family, tiny: TinyCheckpoint, double_quant: bool) -> None:
    folder = str(tiny(family.name))
    base = load_base(
        folder, family, device=torch.device("cpu"), dtype=torch.bfloat16, double_quant=double_quant, trainable=True
    )
    quantised = [layer.weight for layer in base.modules() if hasattr(layer, "quant_state")]
    weights = 0
    for weight in quantised:
        state = weight.quant_state
        second = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
        weights += sum(tensor.nbytes for tensor in (weight, state.absmax, state.code, *second))
    plain = sum(p.nbytes for p in base.parameters() if not any(p is weight for weight in quantised))
    adapted: Any = attach_lora(base, family, rank=4, alpha=8, dropout=0, targets=["all"], rslora=False, dora=False)
    trained = [p for p in adapted.parameters() if p.requires_grad]

    shape = read_shape(folder, family)
    model = options(family, **{"model.rank": 4, "model.double_quant": double_quant, "model.optimizer": "adamw"}).model
    parts = resident_parts(shape, adapted_layers(shape, family, ["all"]), model)
    planned = {part.name: part.bytes for part in parts}
    adapters = sum(p.nbytes for p in trained)
    assert planned == {
        "weights": weights,
        "embeddings, head, norms": plain,
        "adapters": adapters,
        "gradients": adapters,
        "optimizer": 2 * adapters,
    }


def test_a_family_has_as_many_weights_as_published(family: Family) -> None:
    shape = shape_of(family.config, family)
    assert shape.block_weights + shape.plain_weights == family.parameters


def test_the_peak_is_the_sum_of_what_meets_there() -> None:
    family = get_family("mistral")
    plan = plan_memory(shape_of(family.config, family), family, options(family, **{"model.kernels": "none"}), LAPTOP)
    assert plan.peak == sum(part.bytes for part in plan.parts) - sum(p.bytes for p in plan.parts if not p.at_peak)
    assert {part.name for part in plan.parts if not part.at_peak} == {"logits"}
    # fit took 6,706 MiB by the driver's count (H100, 2026-11).
    assert plan.peak / MIB == pytest.approx(6706, rel=0.02)


@pytest.mark.parametrize(
    ("name", "kernels", "length", "measured"),
    [("mistral", "bf16", 2048, 7087), ("mistral", "fp8", 2048, 6899), ("mistral", "fp8", 16384, 7027),
     ("llama3", "fp8", 2048, 6981), ("gemma", "fp8", 2048, 6997), ("phi3", "fp8", 2048, 6987)],
)  # fmt: skip
def test_peaks_of_the_fast_layers_are_those_measured(name: str, kernels: str, length: int, measured: int) -> None:
    """By the driver, in scripts/bench/train.py on an H100 with a budget of 7,150 MiB (README, 2026-11)."""
    family, card = get_family(name), find_card("h100")
    optimizer = "adamw_8bit" if length > 2048 else "adamw"
    changes = {"model.kernels": kernels, "model.memory_budget": "7150MiB", "model.optimizer": optimizer}
    chosen = options(family, **changes, **{"data.max_length": length})
    gpu = Gpu(name=card.name, total=card.memory, reserved=0, used=0)
    plan = plan_memory(shape_of(family.config, family), family, chosen, gpu)
    assert measured <= plan.peak / MIB <= 1.035 * measured


def test_shapes_stand_for_a_live_fast_layer(family: Family, tiny: TinyCheckpoint) -> None:
    """The sizes that the memory plan is made from are those of the layers that `fit` swaps in."""
    from app.model import accelerate

    base = load_base(str(tiny(family.name)), family, device=torch.device("cpu"), dtype=torch.bfloat16, trainable=True)
    adapted: Any = attach_lora(base, family, rank=4, alpha=8, dropout=0, targets=["all"], rslora=False, dora=False)
    decoder = adapted.get_base_model().get_decoder()
    shape = read_shape(str(tiny(family.name)), family)
    for fp8 in (False, True):
        layer = accelerate.swap_in(decoder, fp8=fp8).layers[0]
        assert isinstance(layer.store, ActivationStore) and layer.store.plans[0] == LayerPlan()
        ours = meta_layer(shape, rank=4, adapted=family.lora_targets, fp8=fp8)
        assert layer_sizes(ours, 96, 48) == layer_sizes(layer, 96, 48)
        assert [p.shape for p in ours.parameters] == [p.shape for p in layer.parameters]


@settings(max_examples=40)
@given(
    name=st.sampled_from([name for name in all_families() if name != "smollm2"]),
    kernels=st.sampled_from(["bf16", "fp8", "auto"]),
    mib=st.integers(3000, 16000),
    length=st.sampled_from([512, 2048, 8192]),
)
def test_the_fast_layers_stay_in_their_budget(name: str, kernels: str, mib: int, length: int) -> None:
    family = get_family(name)
    chosen = options(
        family, **{"model.kernels": kernels, "model.memory_budget": f"{mib}MiB", "data.max_length": length}
    )
    shape = shape_of(family.config, family)
    try:
        plan = plan_memory(shape, family, chosen, LAPTOP)
    except MachineError:
        # Weights, adapters and gradients, the context, and the work of one layer over the longest rows.
        parts = resident_parts(shape, adapted_layers(shape, family, ["all"]), chosen.model)
        assert mib * MIB < sum(part.bytes for part in parts) + (5 if length == 8192 else 2) * 2**30
        return
    assert plan.peak + LAPTOP.used <= mib * MIB
    assert 0 <= plan.recomputed <= 1
    assert plan.host >= 2 * shape.vocabulary * shape.width


def test_a_head_waits_in_cpu_memory_only_where_nothing_else_fits() -> None:
    family = get_family("llama3")
    shape = shape_of(family.config, family)

    def parts(mib: int) -> tuple[set[str], int]:
        plan = plan_memory(shape, family, options(family, **{"model.memory_budget": f"{mib}MiB"}), LAPTOP)
        return {part.name for part in plan.parts}, plan.host

    roomy, tight = parts(7600), parts(5900)
    assert "head, norms" in roomy[0] and "norms" in tight[0]
    assert tight[1] >= 2 * 2 * shape.vocabulary * shape.width


def test_what_the_fast_layers_do_not_cover_is_planned_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    family = get_family("mistral")

    def precision(card: str = "rtx4060", **changes: Any) -> str:
        return precision_of(options(family, **changes).model, imagined(find_card(card)))

    assert precision() == precision(**{"model.kernels": "auto"}) == "fp8"
    assert precision("rtx3060") == precision(**{"model.dtype": "float16"}) == "bf16"
    assert precision(**{"model.kernels": "none"}) == precision(**{"model.dtype": "float32"}) == "plain"
    assert precision(**{"model.kernels": "fp8"}) == "fp8"
    assert precision("rtx3060", **{"model.kernels": "fp8"}) == "plain"
    assert precision(**{"model.kernels": "bf16", "model.dropout": 0.1}) == "plain"
    assert precision(**{"model.kernels": "bf16", "model.quantization": "none"}) == "plain"
    monkeypatch.setattr("sys.platform", "win32")
    assert precision() == "bf16"
