"""Accelerated decoders against peft's plain layers: every family, every memory plan, forward and gradients."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from app.families import Family, get_family
from app.kernels.triton_support import INTERPRETED
from app.model.accelerate import Acceleration, accelerate, multiplies_rows, swap_in
from app.model.activation_store import LayerPlan
from app.model.load import load_base
from app.model.lora import attach_lora
from app.model.step_graph import StepGraph
from conftest import TinyCheckpoint

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLANS = {
    "recompute": LayerPlan(),
    "keep attention": LayerPlan(attention="keep"),
    "keep all": LayerPlan(attention="keep", middle="keep", gate_up="keep"),
    "offload": LayerPlan(hidden="offload", attention="offload", middle="offload", gate_up="offload"),
}


class Trained:
    """A tiny adapted model whose adapters are not zero, and what it makes of one batch."""

    def __init__(self, checkpoint: str, family: Family, dtype: torch.dtype, *, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        base = load_base(checkpoint, family, device=DEVICE, dtype=dtype, trainable=True)
        self.model = attach_lora(
            base, family, rank=4, alpha=8, dropout=dropout, targets=["all"], rslora=False, dora=False
        ).train()
        self.causal_lm: Any = self.model.get_base_model()
        self.decoder = self.causal_lm.get_decoder()
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        words, width = self.causal_lm.get_input_embeddings().weight.shape
        self.ids = torch.randint(0, words, (2, 21), device=DEVICE)
        self.weight = torch.randn(2, 21, width, device=DEVICE)

    def loss(self, ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        states = self.decoder(input_ids=ids, position_ids=position_ids, use_cache=False).last_hidden_state
        return (states.float() * self.weight).sum()

    def gradients(self, position_ids: torch.Tensor | None = None) -> tuple[float, dict[str, torch.Tensor]]:
        self.model.zero_grad()
        loss = self.loss(self.ids, position_ids)
        loss.backward()
        return float(loss), {name: p.grad.double().clone() for name, p in self.parameters.items() if p.grad is not None}


def worst(ours: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == exact.keys()
    return max(float((ours[name] - exact[name]).norm() / exact[name].norm()) for name in exact)


@pytest.fixture
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The layers' own logic is tested with the references: the interpreter takes seconds for each layer."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr("app.kernels.triton_support.triton", None)
    yield


@pytest.mark.usefixtures("plain_kernels")
def test_equal_to_plain_layers_whatever_is_kept(
    family: Family, tiny: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.model.fast_layer.TILE", 16)  # the last tile is shorter
    trained = Trained(str(tiny(family.name)), family, torch.float32)
    packed = torch.cat((torch.arange(9), torch.arange(12))).expand(2, -1).to(DEVICE)
    for position_ids in (None, packed):
        _, exact = trained.gradients(position_ids)
        acceleration = swap_in(trained.decoder, fp8=False)
        for name, plan in PLANS.items():
            acceleration.set_plans([plan] * len(acceleration.layers))
            _, ours = trained.gradients(position_ids)
            assert worst(ours, exact) < (1e-5 if DEVICE.type == "cpu" else 2e-3), (name, position_ids is None)
        acceleration.undo()


@pytest.mark.usefixtures("plain_kernels")
def test_fp8_errs_as_fp8_does_and_keeping_changes_little(family: Family, tiny: TinyCheckpoint) -> None:
    trained = Trained(str(tiny(family.name)), family, torch.float32)
    _, exact = trained.gradients()
    acceleration = swap_in(trained.decoder, fp8=True)
    for plan in PLANS.values():
        acceleration.set_plans([plan] * len(acceleration.layers))
        _, ours = trained.gradients()
        assert 1e-3 < worst(ours, exact) < 0.35


@pytest.mark.usefixtures("plain_kernels")
def test_fp8_rounds_otherwise_in_another_step_and_alike_in_the_same(tiny: TinyCheckpoint) -> None:
    trained = Trained(str(tiny("mistral")), get_family("mistral"), torch.float32)
    exact_loss, exact = trained.gradients()
    acceleration = swap_in(trained.decoder, fp8=True)
    found = {}
    for step in (3, 4, 17, 3):  # a resumed run begins in the middle
        acceleration.begin_step(step)
        _, ours = trained.gradients()
        assert worst(ours, exact) < 0.35
        assert step not in found or all(torch.equal(ours[name], found[step][name]) for name in ours)
        found[step] = ours
        with torch.no_grad():  # a validation's loss has nothing of it
            assert float(trained.loss(trained.ids)) == pytest.approx(exact_loss, rel=1e-5)
    assert worst(found[4], found[3]) > 1e-3 and worst(found[17], found[3]) > 1e-3


@pytest.mark.slow
@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter (pip install triton)")
def test_kernels_in_the_interpreter_give_the_same(tiny: TinyCheckpoint) -> None:
    trained = Trained(str(tiny("mistral")), get_family("mistral"), torch.float32)
    _, exact = trained.gradients()
    acceleration = accelerate(trained.causal_lm, "bf16")
    assert acceleration is not None
    acceleration.set_plans([PLANS["keep all"], PLANS["recompute"]])
    _, ours = trained.gradients()
    assert worst(ours, exact) < 1e-5


def test_on_a_cpu_the_default_is_the_plain_layers_without_a_word(tiny: TinyCheckpoint) -> None:
    trained = Trained(str(tiny("smollm2")), get_family("smollm2"), torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DEVICE.type == "cuda" or accelerate(trained.causal_lm) is None


def test_what_is_not_covered_is_said_once_and_left_alone(tiny: TinyCheckpoint, family: Family) -> None:
    trained = Trained(str(tiny(family.name)), family, torch.float32, dropout=0.1)
    original = trained.decoder.forward
    assert accelerate(trained.causal_lm, "none") is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert accelerate(trained.causal_lm, "bf16") is None
    assert len(caught) == 1 and "plain layers" in str(caught[0].message)
    assert trained.decoder.forward == original


def test_fp8_is_taken_only_where_torch_multiplies_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch for Windows refuses the product on every card."""
    assert multiplies_rows.__wrapped__(DEVICE)

    def refuse(*_: Any) -> torch.Tensor:
        raise RuntimeError("Rowwise scaling is not currently supported on your device")

    monkeypatch.setattr("app.model.accelerate.scaled_product", refuse)
    assert not multiplies_rows.__wrapped__(DEVICE)


@pytest.mark.usefixtures("plain_kernels")
def test_generation_goes_to_the_original_layers(tiny: TinyCheckpoint, family: Family) -> None:
    trained = Trained(str(tiny(family.name)), family, torch.float32)
    trained.model.eval()
    before = trained.causal_lm.generate(trained.ids, max_new_tokens=4, do_sample=False)
    swap_in(trained.decoder, fp8=False)
    assert torch.equal(trained.causal_lm.generate(trained.ids, max_new_tokens=4, do_sample=False), before)


@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS)
def test_errs_no_more_than_plain_bfloat16(family: Family, tiny: TinyCheckpoint, plan: str) -> None:
    _, exact = Trained(str(tiny(family.name)), family, torch.float32).gradients()
    trained = Trained(str(tiny(family.name)), family, torch.bfloat16)
    _, plain = trained.gradients()
    acceleration: Acceleration = swap_in(trained.decoder, fp8=False)
    acceleration.set_plans([PLANS[plan]] * len(acceleration.layers))
    loss, ours = trained.gradients()
    assert worst(ours, exact) <= 1.25 * worst(plain, exact)
    trained.model.zero_grad()
    graph = StepGraph(trained.loss, list(trained.parameters.values()))
    for _ in range(3):  # eager, captured, replayed: gradients add up
        assert float(graph({"ids": trained.ids})) == pytest.approx(loss, rel=1e-3)
    for name, parameter in trained.parameters.items():
        assert parameter.grad is not None
        assert float((parameter.grad / 3 - ours[name]).norm() / ours[name].norm()) < 5e-3
    assert not graph._broken and graph._graphs


@pytest.mark.gpu
def test_a_recorded_step_reads_the_scales_of_the_step_it_is_replayed_in(tiny: TinyCheckpoint) -> None:
    trained = Trained(str(tiny("mistral")), get_family("mistral"), torch.bfloat16)
    acceleration = swap_in(trained.decoder, fp8=True)
    graph = StepGraph(trained.loss, list(trained.parameters.values()))
    losses = []
    for step in (0, 0, 0, 5, 8, 0):  # eager, captured, replayed
        acceleration.begin_step(step)
        losses.append(float(graph({"ids": trained.ids})))
    assert graph._graphs
    for step, loss in ((5, losses[3]), (8, losses[4]), (0, losses[5])):
        acceleration.begin_step(step)
        assert loss == pytest.approx(float(trained.loss(trained.ids).detach()), rel=1e-4)
    assert len({losses[3], losses[4], losses[5]}) == 3
