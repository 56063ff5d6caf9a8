"""Lean LoRA layers against peft's own: output and gradients of every family; what they do not cover stays peft's."""

from typing import Any

import pytest
import torch

from app.families import Family
from app.model.lean_lora import lean_adapters
from app.model.load import load_base
from app.model.lora import attach_lora
from conftest import TinyCheckpoint

CPU = torch.device("cpu")
IDS = torch.arange(10, 50).view(2, 20)


def adapted(base: str, family: Family, dtype: torch.dtype, *, dropout: float = 0.0, dora: bool = False) -> Any:
    torch.manual_seed(0)
    model = load_base(base, family, device=CPU, dtype=dtype, trainable=True)
    peft = attach_lora(model, family, rank=4, alpha=8, dropout=dropout, targets=["all"], rslora=False, dora=dora)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return peft.train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(IDS).logits.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def worst(ours: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == exact.keys() and exact
    return max(float((ours[name] - exact[name]).norm() / exact[name].norm()) for name in exact)


def test_same_gradients_as_peft(family: Family, tiny: TinyCheckpoint) -> None:
    model = adapted(str(tiny(family.name)), family, torch.float32)
    exact = gradients(model)
    with torch.no_grad():
        logits = model(IDS).logits
        with model.disable_adapter():
            base = model(IDS).logits
    assert lean_adapters(model) == len(exact) // 2
    assert worst(gradients(model), exact) < 1e-4
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-4, atol=1e-4)
        with model.disable_adapter():
            assert torch.equal(model(IDS).logits, base)


def test_bfloat16_errs_no_more_than_peft(tiny: TinyCheckpoint) -> None:
    from app.families import get_family

    base, family = str(tiny("smollm2")), get_family("smollm2")
    exact = gradients(adapted(base, family, torch.float32))
    model = adapted(base, family, torch.bfloat16)
    plain = worst(gradients(model), exact)
    lean_adapters(model)
    assert worst(gradients(model), exact) <= 1.5 * plain


@pytest.mark.parametrize("other", [{"dropout": 0.1}, {"dora": True}])
def test_what_is_not_covered_stays_as_it_is(tiny: TinyCheckpoint, other: dict[str, Any]) -> None:
    from app.families import get_family

    assert lean_adapters(adapted(str(tiny("mistral")), get_family("mistral"), torch.float32, **other)) == 0
