"""Stacked adapters: every member's block in its place, zero elsewhere."""

import pytest
import torch

from app.kernels.lora_stack import LoraPair, stack_adapters


@pytest.mark.parametrize("ranks", [(4,), (16, 0, 16), (0, 3), (2, 5, 1), (64, 64, 64), (1, 2, 3, 4)])
@pytest.mark.parametrize("columns", [1, 100, 192])
def test_blocks_are_in_their_places(ranks: tuple[int, ...], columns: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [7, 130, 64, 5][: len(ranks)]

    def parameter(*size: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.randn(*size, generator=generator).to(device))

    adapters = [
        LoraPair(a=parameter(rank, columns), b=parameter(count, rank), scaling=0.5 + number) if rank else None
        for number, (rank, count) in enumerate(zip(ranks, rows, strict=True))
    ]
    a = torch.full((sum(ranks), columns), float("nan"), device=device)
    b = torch.full((sum(rows), sum(ranks)), float("nan"), device=device)
    stack_adapters(adapters, rows, a, b)
    present = [adapter for adapter in adapters if adapter is not None]
    assert torch.equal(a, torch.cat([adapter.a for adapter in present]))
    blocks = [
        torch.empty(count, 0, device=device) if adapter is None else adapter.b * adapter.scaling
        for adapter, count in zip(adapters, rows, strict=True)
    ]
    assert torch.equal(b, torch.block_diag(*blocks))
