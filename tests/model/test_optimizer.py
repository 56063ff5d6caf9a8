"""The learning-rate schedule, and AdamW where 8-bit optimizers do not exist."""

import logging

import pytest
import torch

from app.model.optimizer import build_optimizer, schedule_factor


def test_cosine_with_warm_up() -> None:
    factor = schedule_factor("cosine", warmup_steps=4, total_steps=104)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4) == 1.0
    assert factor(54) == pytest.approx(0.5)
    assert factor(104) == pytest.approx(0.0)
    assert all(factor(step) >= factor(step + 1) for step in range(4, 120))


def test_linear_and_constant() -> None:
    assert schedule_factor("linear", warmup_steps=0, total_steps=10)(5) == pytest.approx(0.5)
    assert schedule_factor("constant", warmup_steps=2, total_steps=10)(9) == 1.0


def test_adamw_takes_the_place_of_paged_adamw_on_a_cpu_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    with caplog.at_level(logging.WARNING):
        optimizer = build_optimizer(
            "paged_adamw_8bit", [parameter], lr=1e-3, weight_decay=0.1, device=torch.device("cpu")
        )
    assert isinstance(optimizer, torch.optim.AdamW)
    assert len([record for record in caplog.records if "needs CUDA" in record.message]) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["paged_adamw_8bit", "adamw_8bit", "adamw"])
def test_optimizers_step_on_the_gpu(name: str) -> None:
    device = torch.device("cuda")
    parameter = torch.nn.Parameter(torch.ones(64, 128, device=device))
    optimizer = build_optimizer(name, [parameter], lr=1e-2, weight_decay=0.0, device=device)  # type: ignore[arg-type]
    parameter.square().sum().backward()
    optimizer.step()
    assert 0.98 < float(parameter.mean()) < 0.995
