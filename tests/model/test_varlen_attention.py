"""Packed rows through torch's flash attention, in transformers' own layers and in the fast ones, against padded rows.

The same comparison on the CPU, exact, is in tests/data/test_pack.py.
"""

from typing import Any

import pytest
import torch

from app.families import Family
from app.model.accelerate import swap_in
from app.model.load import load_base
from app.model.lora import attach_lora
from app.model.loss import Batch, summed_loss
from conftest import TinyCheckpoint

LENGTHS = (31, 64, 17, 100, 44)


def rows(device: torch.device) -> tuple[list[Batch], Batch]:
    """Samples of uneven length, one a batch, and the same packed into one row."""
    generator = torch.Generator().manual_seed(0)
    alone: list[Batch] = []
    for length in LENGTHS:
        ids = torch.randint(10, 200, (1, length), generator=generator)
        trained = torch.rand(1, length, generator=generator) < 0.6
        trained[:, 0] = False
        batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "trained": trained}
        alone.append({name: value.to(device) for name, value in batch.items()})  # type: ignore[misc, attr-defined]
    packed: Batch = {
        "input_ids": torch.cat([batch["input_ids"] for batch in alone], dim=1),
        "trained": torch.cat([batch["trained"] for batch in alone], dim=1),
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None].to(device),
    }
    return alone, packed


def gradients(causal_lm: Any, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    causal_lm.zero_grad()
    total = 0.0
    for batch in batches:
        loss, _ = summed_loss(causal_lm, batch)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.double().clone() for name, p in causal_lm.named_parameters() if p.grad is not None}


def error(ours: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == exact.keys()
    squares = sum(float((ours[name] - exact[name]).square().sum()) for name in exact)
    return (squares / sum(float(value.square().sum()) for value in exact.values())) ** 0.5


def adapted(base: str, family: Family, dtype: torch.dtype, device: torch.device) -> Any:
    torch.manual_seed(0)
    model = load_base(base, family, device=device, dtype=dtype, trainable=True)
    causal_lm = attach_lora(model, family, rank=4, alpha=8, dropout=0, targets=["all"], rslora=False, dora=False)
    for name, parameter in causal_lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return causal_lm.train().get_base_model()


@pytest.mark.gpu
def test_packed_rows_are_as_exact_as_single_ones(family: Family, tiny: TinyCheckpoint) -> None:
    device = torch.device("cuda")
    alone, packed = rows(device)
    base = str(tiny(family.name))
    exact_loss, exact = gradients(adapted(base, family, torch.float32, device), alone)
    causal_lm = adapted(base, family, torch.bfloat16, device)
    assert causal_lm.config._attn_implementation == "varlen"
    _, single = gradients(causal_lm, alone)
    loss, together = gradients(causal_lm, [packed])
    assert loss == pytest.approx(exact_loss, rel=5e-3)
    assert error(together, exact) <= 1.25 * error(single, exact)
    swap_in(causal_lm.get_decoder(), fp8=False)
    loss, fast = gradients(causal_lm, [packed])
    assert loss == pytest.approx(exact_loss, rel=5e-3)
    assert error(fast, exact) <= 1.25 * error(single, exact)
    # The comparison can fail: let the samples see one another.
    joined = packed | {"position_ids": torch.arange(sum(LENGTHS), device=device)[None]}
    assert error(gradients(causal_lm, [joined])[1], exact) > 0.1
